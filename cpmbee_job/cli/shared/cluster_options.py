"""The options that say which cluster and which run a verb means, shared by all that follow runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.errors import NotFoundError, PreflightError, StoreError
from cpmbee_job.spec import StorageSpec

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.run.run import Run

Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the job. Default: the context's.")
]
JobNamespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", help="Namespace of the job. Default: cluster.namespace of the spec, else the context's."
    ),
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
        help="Where runs lie (`output` of the spec), for those that the cluster has forgotten.",
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


def find(
    run: str, context: str | None, namespace: str | None, output: str | None, settings: StorageSpec
) -> "tuple[FoundRun, Cluster | None]":
    """The run that the options mean, and the cluster in its namespace; None where there is none and none is needed."""
    from cpmbee_job.launch.runs.find import as_url, find_at_home

    cluster = connect_unless(output is not None or as_url(run) is not None, context, namespace)
    return find_at_home(run, cluster, lambda home: connect(context, home), output=output, storage=settings)


def open_run(run: str, context: str | None, namespace: str | None, output: str | None, settings: StorageSpec) -> "Run":
    """What the store has of the run that the options mean. Raises `NotFoundError` where that is nothing yet."""
    found, _ = find(run, context, namespace, output, settings)
    if found.store_problem is not None:
        raise StoreError(found.store_problem)
    if found.run is None:
        raise NotFoundError(f"{found.url}: no run there (yet)")
    return found.run
