"""The command line: thin verbs over the functions of :mod:`danlu.verbs`, and errors in one paragraph."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from danlu import __version__
from danlu.cli.bench import app as bench_app
from danlu.cli.data import app as data_app
from danlu.cli.metrics import app as metrics_app
from danlu.cli.models import app as models_app
from danlu.cli.preview import preview
from danlu.cli.service import Api, KeyName, NoCache, service_options
from danlu.core.errors import UsageError, explained
from danlu.core.ranks import is_main
from danlu.core.workspace import share_cores

WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For verbs whose options are the keys of a configuration."""

app = typer.Typer(
    name="danlu",
    help="danlu 丹炉: label, tune, evaluate, judge, export and serve open language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(metrics_app, name="metrics")
app.add_typer(bench_app, name="bench")
data_app.command("preview")(preview)

Run = Annotated[str | None, typer.Option("--run", help="run directory, or one of its checkpoints")]
Model = Annotated[str | None, typer.Option("--model", help="without a run: folder, hub id, GGUF file or known name")]
Adapters = Annotated[list[str] | None, typer.Option("--adapter", help="adapter on --model; may be repeated")]


@app.command(context_settings=WORDS)
def train(context: typer.Context) -> None:
    """Train: CONFIG.yaml [key=value …], key=value words alone, or the flags of ChatGLM-Efficient-Tuning.

    --dry-run resolves everything, prints it, and stops. A run that was stopped goes on when the same command
    is started again.
    """
    from danlu.cli.compat import render_resolved, resolve_train
    from danlu.core.console import note, out, warn
    from danlu.tune.checks import remarks

    resolved = resolve_train(context.args)
    if resolved.dry_run:
        for remark in remarks(resolved.config):
            warn(remark)
        out.print(render_resolved(resolved), markup=False, soft_wrap=True)
        return
    for remark in resolved.notes:
        note(remark)
    from danlu.verbs.train import train as run_training

    folder = run_training(resolved.config, command=["danlu", "train", *resolved.argv])
    if is_main():
        out.print(str(folder), markup=False, soft_wrap=True)


@app.command("eval", context_settings=WORDS)
def evaluate(
    context: typer.Context,
    run: Run = None,
    model: Model = None,
    adapter: Adapters = None,
    api: Api = None,
    api_key_env: KeyName = None,
    no_cache: NoCache = False,
) -> None:
    """Measure a run or a model on rows with known answers: dataset=… [max_samples=50 metric_set=standard …]."""
    from danlu.verbs.evaluate import evaluate as measure

    keys = _keys(context.args) | service_options(api, api_key_env, no_cache)
    measure(run, model=model, adapter=adapter or (), **keys)


@app.command(context_settings=WORDS)
def predict(
    context: typer.Context,
    run: Run = None,
    model: Model = None,
    adapter: Adapters = None,
    api: Api = None,
    api_key_env: KeyName = None,
    no_cache: NoCache = False,
) -> None:
    """Write an answer for every row to generated_predictions.jsonl: dataset=… [output_dir=… max_new_tokens=…]."""
    from danlu.core.console import out
    from danlu.verbs.evaluate import predict as write

    keys = _keys(context.args) | service_options(api, api_key_env, no_cache)
    file = write(run, model=model, adapter=adapter or (), **keys)
    out.print(str(file), markup=False, soft_wrap=True)


@app.command(context_settings=WORDS)
def score(
    context: typer.Context,
    run: Run = None,
    model: Model = None,
    adapter: Adapters = None,
    metrics: Annotated[str | None, typer.Option(help="sets, metrics or scores, with commas; standard if none")] = None,
    predict_column: Annotated[str | None, typer.Option("--predict-column", help="where the answers are")] = None,
    reference_column: Annotated[str | None, typer.Option("--reference-column", help="of what was wanted")] = None,
    output: Annotated[str | None, typer.Option(help="JSON file for the scores")] = None,
    rows: Annotated[str | None, typer.Option(help="JSON lines file for the rows with the scores of each")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Measure a file of predictions: FILE [--metrics bleu,rouge-l,f1] [OPTION=VALUE …]; see danlu metrics list.

    Without FILE: score the answers of a dataset with a reward model, --run RM dataset=… [output_dir=… max_samples=…].
    """
    from danlu.cli.score import measure_file, split_file

    file, words = split_file(context.args)
    if file is not None:
        given: dict[str, Any] = {
            "metrics": metrics,
            "predict_column": predict_column,
            "reference_column": reference_column,
        }
        given |= {"output": output, "rows": rows, "run": run, "model": model, "adapter": adapter}
        measure_file(file, given, _joined(words), as_json=as_json)
        return
    if metrics or predict_column or reference_column or output or rows or as_json:
        raise UsageError("no file of predictions is named", hint="danlu score FILE --metrics …")
    from danlu.core.console import out
    from danlu.verbs.rewards import score as write

    written = write(run, model=model, adapter=adapter or (), **_keys(context.args))
    out.print(str(written), markup=False, soft_wrap=True)


@app.command(context_settings=WORDS)
def export(context: typer.Context) -> None:
    """Write a run as a model folder that stands alone: --run DIR [--output_dir FOLDER --max_shard_size 2].

    --format gguf writes one file for llama.cpp and Ollama [--gguf_type q8_0]; --format original writes a ChatGLM model
    in the layout that it came in.
    """
    from danlu.cli.compat import render_resolved, resolve_export
    from danlu.core.console import note, out
    from danlu.verbs.export import export as write

    resolved = resolve_export(context.args)
    if resolved.dry_run:
        out.print(render_resolved(resolved), markup=False, soft_wrap=True)
        return
    for remark in resolved.notes:
        note(remark)
    write(resolved.config)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="ChatGLM folder or hub id, GGUF file, known name, or adapter")],
    target: Annotated[str, typer.Argument(help="folder to write")],
    model: Annotated[str | None, typer.Option(help="of an adapter: its base, where it does not say it")] = None,
    form: Annotated[str, typer.Option("--format", help="original: a prefix for ChatGLM's scripts")] = "safetensors",
    family: Annotated[str | None, typer.Option(help="which ChatGLM it is, where its files do not tell")] = None,
    dtype: Annotated[str, typer.Option(help="precision to write; auto: as it is stored")] = "auto",
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="largest weight file, in GB")] = "5GB",
) -> None:
    """Write a model in ChatGLM's own layout, or a GGUF file, as a folder that transformers reads without its code.

    P-Tuning checkpoints and LoRA adapters of ChatGLM's scripts become ones of today; --format original takes a
    prefix back.
    """
    from danlu.verbs.convert import convert as write

    options = {"family": family, "dtype": dtype, "max_shard_size": max_shard_size}
    write(source, target, model=model, convert_format=form, **options)


@app.command()
def merge(
    paths: Annotated[
        list[str], typer.Argument(metavar="ADAPTER ADAPTER … OUTPUT", help="adapters or runs, and a folder")
    ],
    weights: Annotated[str | None, typer.Option(help="one for each, for instance 0.7,0.3; equal by default")] = None,
    method: Annotated[str, typer.Option(help="linear, cat, svd, ties or dare_ties")] = "cat",
    density: Annotated[float, typer.Option(help="share that ties and dare_ties keep")] = 0.5,
    rank: Annotated[int | None, typer.Option(help="rank of the result with svd")] = None,
    model: Model = None,
) -> None:
    """Add up LoRA adapters of one base: danlu merge runs/a runs/b merged --weights 0.7,0.3."""
    from danlu.verbs.merge import merge as add_up

    *adapters, output = paths
    add_up(adapters, output, weights=weights, method=method, density=density, rank=rank, model=model)


@app.command()
def chat(
    run: Run = None,
    model: Model = None,
    adapter: Adapters = None,
    api: Api = None,
    api_key_env: KeyName = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    template: Annotated[str | None, typer.Option(help="named template, for a model that has none")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 512,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token; above: sample")] = 0.0,
    top_p: Annotated[float, typer.Option(help="sample from the smallest set of tokens with this probability")] = 1.0,
    seed: Annotated[int, typer.Option(help="seed of sampling")] = 42,
) -> None:
    """Talk to a run or a model in the terminal, or through a pipe with one question a line."""
    from danlu.verbs.chat import chat as talk

    talk(
        run=run,
        model=model,
        adapter=adapter or (),
        system=system,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        **service_options(api, api_key_env),
    )


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", help="folder for everything the demo writes")] = "runs/demo",
) -> None:
    """See the whole loop on a real model: measure, tune, measure again, report, export, ask."""
    from danlu.verbs.demo import demo as show

    show(output)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """Say what this machine can run: Python, packages, memory, GPU, cache."""
    from danlu.cli.doctor import report

    report(as_json=as_json)


@app.command()
def plugins(as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """List methods, metrics and formats, and which package each comes from."""
    from danlu.cli.doctor import list_plugins

    list_plugins(as_json=as_json)


def _keys(words: list[str]) -> dict[str, Any]:
    """``key=value`` words, or the same as ``--key value`` and ``--key=value``."""
    from danlu.core.config import parse_overrides

    return parse_overrides(_joined(words))


def _joined(words: list[str]) -> list[str]:
    """``--key value`` and ``--key=value`` as ``key=value``."""
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and "=" not in word:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
            word = f"{word}={value}"
        joined.append(word.removeprefix("--"))
    return joined


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if version:
        from danlu.core.console import out

        out.print(f"danlu {__version__}")
        raise typer.Exit


def main(words: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage. ``--debug`` anywhere shows tracebacks."""
    share_cores()
    arguments = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if not debug:
        warnings.simplefilter("ignore")
    try:
        app(arguments, prog_name="danlu")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except Exception as error:
        if debug:
            raise
        from danlu.core.console import err

        reason = explained(error)
        if not (reason.told or (isinstance(error, UsageError) and not is_main())):  # each process says the same
            err.print(f"error: {reason}", style="bad", markup=False, soft_wrap=True)
        raise SystemExit(reason.exit_code) from None
