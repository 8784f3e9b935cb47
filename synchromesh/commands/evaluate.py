"""`synchromesh evaluate`: scores of a checkpoint."""

import click

from synchromesh.commands.answers import answering, json_option, print_json
from synchromesh.evaluation import BAD_INPUT, evaluate


@click.command(epilog="Example: synchromesh evaluate runs/dlrm --data data/criteo-like/test")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("job", nargs=-1, type=click.Path(), metavar="[JOB.yaml] [key.path=value]...")
@click.option("--data", multiple=True, metavar="PATH", help="Read this in place of data.eval.")
@json_option
def command(checkpoint: str, job: tuple[str, ...], data: tuple[str, ...], as_json: bool) -> None:
    """Score a checkpoint, of a run its newest one, on labelled samples; prints one line of JSON.

    The samples are those of data.eval in JOB.yaml, else in the job of the run that wrote the
    checkpoint. A job's data.label and data.eval_batch_size may differ from training's, its features
    may not. Scores are those of training bit for bit where data.eval_batch_size and
    cluster.worker_threads are.
    """
    named = bool(job) and "=" not in job[0]
    overrides = job[named:]
    for text in overrides:
        if "=" not in text:
            raise click.UsageError(f"an override must look like key.path=value, got {text!r}")
    with answering(*BAD_INPUT, failed="failed: "):
        line = evaluate(
            checkpoint, job=job[0] if named else None, overrides=overrides, data=data or None
        )
    print_json(line)
