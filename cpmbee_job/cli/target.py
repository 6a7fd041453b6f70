"""The options that say which cluster and which run a verb means, shared by all that follow runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.errors import PreflightError

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.cluster import Cluster

Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the job. Default: the context's.")
]
Reference = Annotated[
    str,
    typer.Argument(metavar="RUN", help="<name>/<run id>, or the URL of the run's folder.", show_default=False),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        envvar="CPMBEE_OUTPUT",
        help="Where runs lie (`output` of the spec), to find one that the cluster has forgotten.",
    ),
]


def connect(context: str | None, namespace: str | None) -> "Cluster":
    """The cluster that the options mean."""
    from cpmbee_job.launch.kube.api import connect as connect_api  # it takes most of a second to load

    return connect_api(context, namespace)


def connect_unless(dispensable: bool, context: str | None, namespace: str | None) -> "Cluster | None":
    """The same. None where this machine knows of no cluster, and the verb can do without (`dispensable`)."""
    try:
        return connect(context, namespace)
    except PreflightError:
        if dispensable and context is None and namespace is None:
            return None
        raise
