"""On the PYTHONPATH of a chaos run: rank 0 of each attempt tells what it does, a line each, into `$CHAOS_RECORD`.

`<process id> <step>` after a step, `<process id> evaluating` before an evaluation. `$CHAOS_RECORD.pace` holds how many
seconds a step lasts at least, so that a fault hits few of them and a fast machine does not run out of steps.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

MODULE = "cpmbee_job.train.engine.torch_engine"


class Finder:
    """Stands before the others until the engine is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            record(module.TorchEngine)

        spec.loader.exec_module = exec_module
        return spec


def record(engine):
    place = Path(os.environ["CHAOS_RECORD"])
    pace = place.with_name(f"{place.name}.pace")
    step, evaluate = engine.step, engine.evaluate

    def tell(what):
        if os.environ.get("RANK") == "0":
            with place.open("a") as file:
                file.write(f"{os.getpid()} {what}\n")

    def paced_step(self, number, *arguments, **options):
        begun_at = time.monotonic()
        result = step(self, number, *arguments, **options)
        tell(number)
        if pace.exists():
            time.sleep(max(0.0, float(pace.read_text()) - (time.monotonic() - begun_at)))
        return result

    def told_evaluate(self, *arguments, **options):
        tell("evaluating")
        return evaluate(self, *arguments, **options)

    engine.step, engine.evaluate = paced_step, told_evaluate


if "cpmbee_job.train.worker" in sys.orig_argv and "torch.distributed.run" not in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
