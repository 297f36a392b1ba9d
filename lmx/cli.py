"""The `lmx` command: flags in, functions of `lmx.run` out. The only file with absl flags; JAX is loaded when a command needs it."""

from __future__ import annotations

import errno
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from lmx.types import BadInput, Preempted

HELP = """\
lmx: language-model research in JAX. One config is one run.

  lmx train     --config=configs/gpt_stdlib.py --workdir=runs/a     train, or go on where runs/a stopped
  lmx launch    local|slurm|kubernetes ... -- train ...             the same by many processes, here or on a cluster
  lmx sweep     --study=experiments/sweep_lr_width.py --workdir=... many trainings of one config: grids, searches, seeds
  lmx evaluate  --workdir=runs/a --checkpoint=best                  loss, perplexity, bits per byte of a split
  lmx predict   --workdir=runs/a --input='def main('                what the task predicts: a continuation, a label, ...
  lmx search    --workdir=runs/b --corpus=FILE --query=TEXT         the texts that are nearest in meaning
  lmx harness   --workdir=runs/a --tasks=arc_easy,hellaswag         a decoder under lm-evaluation-harness
  lmx data      --config=configs/gpt_stdlib.py                      stages, shapes and decoded examples of the pipeline
  lmx report    runs/a runs/b                                       report.html: curves, samples, config, what differs; or of a sweep
  lmx import    --from=DIR --workdir=runs/b                         a Hugging Face model as a run; lmx export writes one
  lmx runs      [runs]                                              the runs below a folder
  lmx explain   --config=configs/gpt_stdlib.py model.dim            a value, and who set it
  lmx diff      A B                                                 how two configs or runs differ

`lmx COMMAND --help` teaches each. Values of a config are changed by --config.KEY=VALUE.
Exit codes: 0 done, 2 bad input (one line says what to mend), 75 stopped by a signal with a checkpoint written.
"""

Flags = flags.FlagValues


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 2 or 75."""
    if argv is None:
        _use_huge_pages()
    argv = list(sys.argv if argv is None else argv)
    if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
        print(HELP, end='')
        sys.exit(0 if len(argv) > 1 else 2)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the user's own modules, which configs name
    show_traceback = '--traceback' in argv
    argv = [arg for arg in argv if arg != '--traceback']
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax tells the log what a person need not read
    try:
        sys.exit(_run(argv))
    except KeyboardInterrupt:
        print('lmx: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        code, line = _explain(error)
        if show_traceback or line is None:
            traceback.print_exc()
        if line is not None:
            print(f'lmx: {line}', file=sys.stderr)
        sys.exit(code)


def _use_huge_pages() -> None:
    """Starts `lmx train` over with glibc's huge pages: XLA's CPU client takes fresh memory at every step, and with small pages that is
    a tenth of the step. glibc reads the setting at process start alone; whoever has set GLIBC_TUNABLES keeps it."""
    if sys.platform == 'linux' and sys.argv[1:2] == ['train'] and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, '-m', 'lmx.cli', *sys.argv[1:]])


def _explain(error: BaseException) -> tuple[int, str | None]:
    """(exit code, the one line) for an error; no line for a bug of ours, which shows its traceback."""
    if isinstance(error, Preempted):
        return 75, str(error)
    if isinstance(error, (BadInput, flags.Error)):
        return 2, ' '.join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG):
        return 2, f'{error.strerror}: {error.filename or "while writing"}; earlier checkpoints are untouched'
    return 1, None


def _run(argv: list[str]) -> int:
    from lmx import spec

    name = argv[1]
    if name not in COMMANDS:
        raise BadInput(f'there is no command {name!r}{spec.nearest(name, list(COMMANDS))}; see lmx --help')
    values = Flags()
    flags.DEFINE_bool('help', False, 'show this text', short_name='h', flag_values=values)
    define, run, text = COMMANDS[name]
    define(values)
    at = argv.index('--') if '--' in argv else len(argv)
    ours, overrides = _split(argv[1:at])
    rest = [*values(ours)[1:], *argv[at + 1 :]]
    if values.help:
        print(f'lmx {name}: {textwrap.dedent(text)}\n{_flag_help(values)}')
        return 0
    return run(values, rest, overrides) or 0


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """(our own arguments, the --config.KEY=VALUE overrides)."""
    overrides = [arg for arg in argv if arg.lstrip('-').startswith(('config.', 'noconfig.')) and arg.startswith('-')]
    return [arg for arg in argv if arg not in overrides], overrides


def _flag_help(values: Flags) -> str:
    lines = []
    for key in values:
        flag = values[key]
        if key == flag.name:
            default = '' if flag.default in (None, False, []) else f' (default {flag.default})'
            lines.append(f'  --{key:<14}{flag.help}{default}')
    return '\n'.join([*lines, f'  {"--traceback":<16}show where an error came from'])


# -- configs


def _config(path: str | None, overrides: Sequence[str], workdir: str | None = None) -> Any:
    """The config of --config, or of the run in --workdir, with the overrides applied."""
    from lmx.run.config import load
    from lmx.train.workdir import read_config

    if path is None and workdir is None:
        raise BadInput('give --config=FILE.py, as in --config=configs/gpt_stdlib.py')
    return override(load(path) if path is not None else read_config(workdir or ''), overrides)


def override(config: Any, overrides: Sequence[str]) -> Any:
    """The config with --config.KEY=VALUE applied by ml_collections' config_flags, which checks the types.

    Raises:
      BadInput: a key that does not exist (the nearest is named), or a value of another type.
    """
    import ast
    import copy

    from ml_collections import ConfigDict, config_flags

    from lmx import spec

    class _Literal(flags.ArgumentParser):
        syntactic_help = 'a Python literal, or a text'

        def parse(self, argument: Any) -> Any:
            try:
                return ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                return argument

    config_flags.register_flag_parser_for_type(type(None), _Literal())
    keys = [arg.lstrip('-').partition('=')[0].partition('.')[2] for arg in overrides]
    for key in keys:
        spec.get(config, key)
    before = {key: spec.get(config, key) for key in keys}
    start = ConfigDict(copy.deepcopy(spec.to_plain(config)))
    values = Flags()
    argv = ['lmx', *(arg if arg.startswith('--') else f'-{arg}' for arg in overrides)]
    config_flags.DEFINE_config_dict('config', start, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(str(error)) from None
    changed: Any = values['config'].value
    with changed.unlocked(), changed.ignore_type():
        for key in keys:  # a reference is text, but what replaces it need not be
            parent, _, last = key.rpartition('.')
            node: Any = spec.get(changed, parent) if parent else changed
            if isinstance(before[key], str) and before[key].startswith('${') and isinstance(node[last], str):
                node[last] = _Literal().parse(node[last])
    return spec.finish(changed)


# -- commands


def _train_flags(v: Flags) -> None:
    flags.DEFINE_string('config', None, 'FILE.py or FILE.py:ARG; not needed to go on with a run in --workdir', flag_values=v)
    flags.DEFINE_string('workdir', None, "the run's folder; default runs/<config>-<time>", flag_values=v)
    flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT where the processes of one job meet; Slurm, Open MPI and TPU slices say it', flag_values=v
    )
    flags.DEFINE_integer('processes', None, 'how many processes the job has', flag_values=v)
    flags.DEFINE_integer('process', None, 'which of them this is, from 0', flag_values=v)
    flags.DEFINE_float('join_timeout', 300, 'seconds to wait for the other processes', flag_values=v)
    flags.DEFINE_bool('dry_run', False, 'print mesh, layouts, bytes per device and collectives of a step, and train nothing', flag_values=v)
    flags.DEFINE_string('profile', None, 'FROM:TO, write a profiler trace of these steps', flag_values=v)


def _train(v: Flags, rest: list[str], overrides: list[str]) -> int:
    import pathlib
    import time

    _refuse(rest)
    config = _config(v.config, overrides, v.workdir)
    name = pathlib.Path((v.config or '').partition(':')[0]).stem
    from lmx import run, spec
    from lmx.run.parts import set_up_jax
    from lmx.train import hosts

    set_up_jax(config)  # before anybody counts devices or processes
    job = hosts.find(v.coordinator, v.processes, v.process)
    if job is not None:
        hosts.join(job, spec.to_json(config), v.join_timeout)
    workdir = v.workdir or hosts.broadcast(f'runs/{name}-{time.strftime("%Y%m%d-%H%M%S")}')
    if v.dry_run:
        from lmx.run.dry_run import dry_run

        print(dry_run(config))
        return 0
    evaluations = run.train(config, workdir, profile=_span(v.profile))
    if hosts.main():
        print(run.finish(config, pathlib.Path(workdir), evaluations))
    return 0


def _span(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(':')
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise BadInput(f'--profile={text} is not FROM:TO with FROM < TO, as in --profile=10:20')
    return int(first), int(last)


def _evaluate_flags(v: Flags) -> None:
    _restore_flags(v)
    flags.DEFINE_multi_string(
        'split', [], 'a name under config.data; several may be given; default: those evaluated in training', flag_values=v
    )


def _restore_flags(v: Flags) -> None:
    flags.DEFINE_string('workdir', None, "the run's folder", flag_values=v)
    flags.DEFINE_string('checkpoint', 'last', 'last, best, a step, or average:K (the mean of the last K)', flag_values=v)
    flags.DEFINE_multi_string('allow_import', [], "a module of your own that the run's config may call", flag_values=v)


def _restored(v: Flags, overrides: list[str]) -> Any:
    if v.workdir is None:
        raise BadInput('give --workdir=DIR, the folder of a run')
    return _config(None, overrides, v.workdir)


def _evaluate(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest)
    config = _restored(v, overrides)
    from lmx import run

    values = run.evaluate(v.workdir, checkpoint=v.checkpoint, splits=v.split, config=config, allow=v.allow_import)
    print(run.table(values))


SAMPLING = {
    'max_tokens': (flags.DEFINE_integer, 'most new tokens'),
    'temperature': (flags.DEFINE_float, '0 = the likeliest token'),
    'top_k': (flags.DEFINE_integer, 'draw from the K likeliest; 0 = all'),
    'top_p': (flags.DEFINE_float, 'draw from the likeliest that make up this probability'),
    'min_p': (flags.DEFINE_float, "draw from tokens with at least this share of the likeliest one's probability"),
    'repetition_penalty': (flags.DEFINE_float, 'above 1 makes tokens that have occurred less likely'),
    'stop': (flags.DEFINE_multi_string, 'a text that ends the continuation; several may be given'),
    'beam_size': (flags.DEFINE_integer, 'hypotheses that beam search follows; 1 = the likeliest token each time'),
    'length_penalty': (flags.DEFINE_float, 'above 0 beam search prefers long texts'),
    'banned': (flags.DEFINE_multi_string, 'a text that no prediction may hold; several may be given'),
    'forced': (flags.DEFINE_string, 'what a prediction begins with'),
    'min_tokens': (flags.DEFINE_integer, 'tokens before a prediction may end'),
    'no_repeat': (flags.DEFINE_integer, 'no so many tokens in a row come twice; 0 = they may'),
    'draft_tokens': (flags.DEFINE_integer, 'what --draft proposes at a time'),
}


def _predict_flags(v: Flags) -> None:
    _restore_flags(v)
    flags.DEFINE_string('input', None, 'a text', flag_values=v)
    flags.DEFINE_string('inputs', None, 'FILE.jsonl (a JSON text or record per line) or a file with a text per line', flag_values=v)
    flags.DEFINE_string('output', None, 'FILE.jsonl for the predictions; default: print them', flag_values=v)
    flags.DEFINE_integer('seed', 0, 'of the sampling', flag_values=v)
    flags.DEFINE_integer('batch_size', 16, 'inputs predicted together', flag_values=v)
    flags.DEFINE_string(
        'draft', None, 'a smaller run with the same tokenizer, which proposes tokens for the large one to check', flag_values=v
    )
    flags.DEFINE_bool('skip_bad', False, 'leave broken lines out and go on after inputs that cannot be read', flag_values=v)
    for name, (define, text) in SAMPLING.items():
        define(name, None, f'{text}; default: the config, task.{name}', flag_values=v)


def _predict(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest)
    if (v.input is None) == (v.inputs is None):
        raise BadInput('give either --input=TEXT or --inputs=FILE')
    config = _restored(v, overrides)
    with config.unlocked(), config.ignore_type():
        for name in SAMPLING:
            value = v[name].value
            if value is not None:
                if name not in config.task:
                    raise BadInput(f'--{name} does not apply to the task {config.task.call}')
                config.task[name] = tuple(value) if isinstance(value, list) else value
    from lmx.run.predict import predict, read_inputs, write_outputs

    inputs = [v.input] if v.input is not None else read_inputs(v.inputs, v.skip_bad)
    if v.output is not None and os.path.exists(v.output):
        raise BadInput(f'{v.output} exists; give another --output')
    options = {'checkpoint': v.checkpoint, 'config': config, 'allow': v.allow_import, 'seed': v.seed, 'batch_size': v.batch_size}
    options |= {'skip_bad': v.skip_bad, 'draft': v.draft}
    if v.input is not None and v.output is None and v.draft is None and _streams(config):
        opening = iter([v.input + ('\n' if 'template' in config.task else '')])  # an answer stands below its question
        predict(v.workdir, inputs, write=lambda _, text: print(next(opening, '') + text, end='', flush=True), **options)
        print(next(opening, ''))
        return
    outputs = predict(v.workdir, inputs, **options)
    if v.output is not None:
        write_outputs(v.output, inputs, outputs)
        return
    import json

    for item, made in zip(inputs, outputs):
        print(json.dumps({'input': item, **made}, ensure_ascii=False))


def _streams(config: Any) -> bool:
    """Tasks with sampling settings write text as it is made, but for a search, which knows its text at the end."""
    return 'temperature' in config.task and config.task.get('beam_size', 1) == config.task.get('samples', 1) == 1


def _data_flags(v: Flags) -> None:
    flags.DEFINE_string('config', None, 'FILE.py or FILE.py:ARG', flag_values=v)
    flags.DEFINE_string('workdir', None, 'a run whose config to take', flag_values=v)
    flags.DEFINE_integer('step', None, 'rebuild the batch of this step of metrics.jsonl, and its batch_hash', flag_values=v)
    flags.DEFINE_integer('examples', 2, 'how many to decode', flag_values=v)
    flags.DEFINE_bool('prepare', False, 'download and prepare everything, for nodes without a network', flag_values=v)


def _data(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest)
    config = _config(v.config, overrides, v.workdir)
    from lmx import run

    print(run.prepare(config) if v.prepare else run.data(config, step=v.step, examples=v.examples))


def _report_flags(v: Flags) -> None:
    flags.DEFINE_string('output', None, 'the page to write; default report.html in the (first) run', flag_values=v)
    flags.DEFINE_string('attention', None, 'a text, or a training record as JSON, to see what each run attends to in it', flag_values=v)
    flags.DEFINE_multi_string('allow_import', [], "a module of your own that the runs' configs may call", flag_values=v)


def _report(v: Flags, rest: list[str], overrides: list[str]) -> None:
    if not rest:
        raise BadInput('name one or more runs, or a sweep, as in: lmx report runs/a runs/b')
    from lmx import run

    if v.attention is not None:
        for workdir in rest:
            run.attention(workdir, _record(v.attention), allow=v.allow_import)
    print(f'report: {run.report(*rest, output=v.output)}')


def _record(text: str) -> Any:
    """A JSON object, or the text itself."""
    import json

    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _import_flags(v: Flags) -> None:
    flags.DEFINE_string('from', None, 'a folder with config.json, *.safetensors and a tokenizer, or a name on the hub', flag_values=v)
    flags.DEFINE_string('workdir', None, 'the run to make', flag_values=v)
    flags.DEFINE_string('task', None, 'what it is for, a name in lmx.tasks; default: what the architecture says', flag_values=v)
    flags.DEFINE_string('config', None, 'FILE.py or FILE.py:ARG with data and task for it', flag_values=v)
    flags.DEFINE_string('dtype', 'float32', 'what the model computes in: float32 or bfloat16', flag_values=v)


def _import(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest + overrides)
    source = v['from'].value
    if source is None or v.workdir is None:
        raise BadInput('give --from=DIR, the folder of a Hugging Face model, and --workdir=DIR, the run to make')
    from lmx import run

    print(run.import_model(source, v.workdir, task=v.task, config=v.config, dtype=v.dtype))


def _export_flags(v: Flags) -> None:
    flags.DEFINE_string('workdir', None, "the run's folder", flag_values=v)
    flags.DEFINE_string('to', None, 'the folder to write, or a file (.txt, .vec, .gz behind it) for the word vectors alone', flag_values=v)
    flags.DEFINE_string('checkpoint', 'last', 'last, best, a step, or average:K (the mean of the last K)', flag_values=v)
    flags.DEFINE_string('dtype', None, 'float32, bfloat16 or float16; default: what an imported model came with', flag_values=v)


def _export(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest + overrides)
    if v.workdir is None or v.to is None:
        raise BadInput('give --workdir=DIR, the run, and --to=DIR, the folder to write (or --to=FILE.txt for the word vectors)')
    from lmx import run

    print(run.export_model(v.workdir, v.to, checkpoint=v.checkpoint, dtype=v.dtype))


def _search_flags(v: Flags) -> None:
    _restore_flags(v)
    flags.DEFINE_string('corpus', None, 'a file with a text per line, or .jsonl with {"text": ...} per line', flag_values=v)
    flags.DEFINE_multi_string(
        'query', [], 'what to look for; several may be given; default: each line of the standard input, answered as it comes', flag_values=v
    )
    flags.DEFINE_integer('top', 5, 'texts per query', flag_values=v)
    flags.DEFINE_bool(
        'exact', False, 'compare with all texts, even of a corpus so large that the best are looked for approximately', flag_values=v
    )


def _search(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest)
    if v.corpus is None:
        raise BadInput('give --corpus=FILE, the texts, and --query=TEXT, or queries on the standard input')
    config = _restored(v, overrides)
    from lmx import run

    options = {'checkpoint': v.checkpoint, 'config': config, 'allow': v.allow_import, 'exact': v.exact}
    searcher = run.Searcher(v.workdir, v.corpus, **options)
    if v.query:
        groups = zip(v.query, searcher(v.query, v.top))
    else:
        groups = ((query, searcher([query], v.top)[0]) for query in (line.strip() for line in sys.stdin) if query)
    for query, found in groups:
        print(
            query if len(v.query) != 1 else '',
            *(f'{hit["score"]:.4f}  {hit["line"]:>6}  {hit["text"]}' for hit in found),
            sep='\n',
            flush=True,
        )


def _harness_flags(v: Flags) -> None:
    _restore_flags(v)
    flags.DEFINE_list('tasks', [], 'names of tasks or groups, with commas between them', flag_values=v)
    flags.DEFINE_integer('shots', None, 'answered examples before each question; default: as the task says', flag_values=v)
    flags.DEFINE_integer('limit', None, 'questions per task; default: all', flag_values=v)
    flags.DEFINE_string('include', None, 'a folder with task files of your own', flag_values=v)
    flags.DEFINE_integer('batch_size', 16, 'rows read together', flag_values=v)
    flags.DEFINE_integer('seed', 0, 'of sampling, and of which examples are drawn', flag_values=v)


def _harness(v: Flags, rest: list[str], overrides: list[str]) -> None:
    _refuse(rest)
    if not v.tasks:
        raise BadInput('give --tasks=NAME,NAME, as in --tasks=arc_easy,hellaswag')
    config = _restored(v, overrides)
    try:
        from lmx.run.harness import harness
    except ImportError as error:
        raise BadInput(f"{error}; pip install 'lmx[harness]'") from None
    from lmx import run

    options = {'checkpoint': v.checkpoint, 'config': config, 'allow': v.allow_import, 'batch_size': v.batch_size, 'seed': v.seed}
    print(run.table(harness(v.workdir, v.tasks, shots=v.shots, limit=v.limit, include=v.include, **options)))


def _runs(v: Flags, rest: list[str], overrides: list[str]) -> None:
    from lmx.report import runs

    print(runs.table(runs.find(rest[0] if rest else 'runs')))


def _explain_flags(v: Flags) -> None:
    flags.DEFINE_string('config', None, 'FILE.py or FILE.py:ARG', flag_values=v)


def _explain_key(v: Flags, rest: list[str], overrides: list[str]) -> None:
    from lmx import run

    if len(rest) != 1:
        raise BadInput('name one key, as in: lmx explain --config=configs/gpt_stdlib.py model.dim')
    print(run.explain(v.config, _config(v.config, overrides), rest[0], [arg.partition('.')[2].partition('=')[0] for arg in overrides]))


def _diff(v: Flags, rest: list[str], overrides: list[str]) -> None:
    from lmx import run

    if len(rest) != 2:
        raise BadInput('name two config files or runs, as in: lmx diff runs/a runs/b')
    print(run.difference(*rest))


def _launch_flags(v: Flags) -> None:
    flags.DEFINE_integer('processes', 2, 'local, kubernetes: processes of the job', flag_values=v)
    flags.DEFINE_integer('nodes', 1, 'slurm: machines', flag_values=v)
    flags.DEFINE_integer('tasks_per_node', None, 'slurm: processes of each machine; default one per GPU, or one', flag_values=v)
    flags.DEFINE_string('image', None, 'kubernetes: with lmx and your code in it', flag_values=v)
    flags.DEFINE_string('name', None, "kubernetes: of the job; default the workdir's", flag_values=v)
    flags.DEFINE_string('claim', None, 'kubernetes: the volume claim that holds the workdir', flag_values=v)
    flags.DEFINE_string('mount', '/runs', 'kubernetes: where it is mounted', flag_values=v)
    flags.DEFINE_multi_string('resource', [], 'kubernetes: of each pod, as nvidia.com/gpu=8; several may be given', flag_values=v)
    flags.DEFINE_multi_string('node_label', [], 'kubernetes: what nodes must carry, as pool=h100; several may be given', flag_values=v)
    flags.DEFINE_bool('jobset', True, 'kubernetes: a JobSet around the Job', flag_values=v)
    flags.DEFINE_bool('dry_run', False, 'slurm: print the script and submit nothing', flag_values=v)
    _slurm_flags(v)


def _slurm_flags(v: Flags) -> None:
    from lmx.launch import slurm

    flags.DEFINE_integer('restarts', 3, 'how often all start again after a process has died', flag_values=v)
    flags.DEFINE_integer('gpus_per_node', 0, 'slurm: GPUs of each machine', flag_values=v)
    flags.DEFINE_integer('grace', 120, 'slurm: seconds before the time limit at which the run saves and is requeued', flag_values=v)
    flags.DEFINE_multi_string(
        'setup', [], "slurm: a shell line before the run, such as 'module load cuda'; several may be given", flag_values=v
    )
    flags.DEFINE_string('container', None, 'slurm: an image, for srun --container-image', flag_values=v)
    for option in slurm.OPTIONS:
        flags.DEFINE_string(option, None, f"slurm: sbatch's --{option.replace('_', '-')}", flag_values=v)
    flags.DEFINE_bool('snapshot', True, 'slurm: run a copy of the code as it is now, in WORKDIR/code', flag_values=v)


def _launch(v: Flags, rest: list[str], overrides: list[str]) -> int:
    import pathlib

    where, command = (rest[0], rest[1:]) if rest else ('', [])
    if where not in ('local', 'slurm', 'kubernetes') or command[:1] != ['train'] or overrides:
        raise BadInput(
            'say where and what: lmx launch local|slurm|kubernetes [flags] -- train --config=configs/gpt_stdlib.py --workdir=runs/a'
        )
    given = [at for at, word in enumerate(command) if word.startswith('--workdir=')]
    if not given:
        raise BadInput('give --workdir=DIR behind `train`, so that a restart finds its checkpoints')
    if where == 'local':
        from lmx.launch import local

        if v.processes < 1:
            raise BadInput(f'--processes={v.processes} must be at least 1')
        return local.launch(command, processes=v.processes, restarts=v.restarts)
    if where == 'kubernetes':
        from lmx.launch import kubernetes

        if v.image is None:
            raise BadInput('give --image=IMAGE, with lmx and your code in it')
        asked = {'resources': _pairs('resource', v.resource), 'node_selector': _pairs('node_label', v.node_label)}
        name = v.name or pathlib.Path(command[given[0]]).name.lower().replace('_', '-')
        more = {'processes': v.processes, 'claim': v.claim, 'mount': v.mount, 'restarts': v.restarts, 'jobset': v.jobset}
        print(kubernetes.render(kubernetes.manifests(command, name=name, image=v.image, **asked, **more)), end='')
        return 0
    from lmx.launch import slurm, snapshot

    workdir = pathlib.Path(command[given[0]].partition('=')[2]).absolute()
    command[given[0]] = f'--workdir={workdir}'
    here = pathlib.Path.cwd()
    folder = snapshot.take(here, workdir / 'code', copy=not v.dry_run) if v.snapshot else here
    text = slurm.script(
        command,
        workdir=workdir,
        folder=folder,
        nodes=v.nodes,
        gpus_per_node=v.gpus_per_node,
        tasks_per_node=v.tasks_per_node,
        name=workdir.name,
        grace=v.grace,
        restarts=v.restarts,
        setup=v.setup,
        container=v.container,
        options=_slurm_options(v),
    )
    if v.dry_run:
        print(text, end='')
        return 0
    job = slurm.submit(text, workdir)
    print(f'submitted job {job}; its output is in {workdir / "logs"}; `squeue --job={job}` shows where it stands')
    return 0


def _pairs(flag: str, words: Sequence[str]) -> dict[str, str]:
    wrong = [word for word in words if not all(word.partition('='))]
    if wrong:
        raise BadInput(f'--{flag}={wrong[0]} is not KEY=VALUE')
    return {key: value for key, _, value in (word.partition('=') for word in words)}


def _sweep_flags(v: Flags) -> None:

    flags.DEFINE_string('study', None, 'FILE.py with get_study(); not needed to go on with a sweep in --workdir', flag_values=v)
    flags.DEFINE_string('workdir', None, "the sweep's folder; default sweeps/<study>", flag_values=v)
    flags.DEFINE_enum(
        'executor', 'vmap', ['vmap', 'local', 'slurm'], 'many in one program, a process for each, or a job array', flag_values=v
    )
    flags.DEFINE_integer('slots', None, 'vmap: how many at most in one program; default as many as fit', flag_values=v)
    flags.DEFINE_integer('jobs', 1, 'local: how many at a time', flag_values=v)
    flags.DEFINE_string('part', None, 'I/N: every Nth training alone, beginning with the Ith', flag_values=v)
    flags.DEFINE_bool(
        'dry_run', False, 'list the points and what they cost, or print the scripts for Slurm, and train nothing', flag_values=v
    )
    flags.DEFINE_bool('status', False, 'how the sweep in --workdir stands', flag_values=v)
    flags.DEFINE_string('take', None, 'a training, as 0003-s1, to copy to --to as a run of its own', flag_values=v)
    flags.DEFINE_string('to', None, 'where --take copies to', flag_values=v)
    flags.DEFINE_integer('array', 8, 'slurm: jobs of the array, each with its part of the trainings', flag_values=v)
    flags.DEFINE_integer('at_once', None, 'slurm: how many of them at a time', flag_values=v)
    flags.DEFINE_enum('inner', 'vmap', ['vmap', 'local'], 'slurm: the executor of each job', flag_values=v)
    _slurm_flags(v)


def _sweep(v: Flags, rest: list[str], overrides: list[str]) -> int:
    import dataclasses
    import pathlib

    _refuse(rest)
    if v.study is None and v.workdir is None:
        raise BadInput('give --study=FILE.py, as in --study=experiments/sweep_lr_width.py')
    workdir = pathlib.Path(v.workdir or f'sweeps/{pathlib.Path(v.study).stem}')
    from lmx import study
    from lmx.run import sweep as of_sweep

    if v.status:
        print(of_sweep.status(workdir))
        return 0
    if v.take is not None:
        if v.to is None:
            raise BadInput('give --to=DIR, where the training is copied to')
        print(f'lmx train --workdir={of_sweep.take(workdir, v.take, v.to)}')
        return 0
    wanted = of_sweep.Folder(workdir).study if v.study is None else study.load(v.study)
    wanted = dataclasses.replace(wanted, base=override(wanted.base, overrides)) if overrides else wanted
    if v.executor == 'slurm':
        return _sweep_slurm(v, wanted, workdir)
    if v.dry_run:
        print(of_sweep.dry_run(wanted, workdir))
        return 0
    part = None if v.part is None else _part(v.part)
    of_sweep.sweep(wanted, workdir, executor=v.executor, jobs=v.jobs, slots=v.slots, part=part)
    if part is None:
        print(of_sweep.finish(workdir))
    return 0


def _sweep_slurm(v: Flags, wanted: Any, workdir: Any) -> int:
    from lmx.run.sweep import Folder
    from lmx.sweep import slurm

    folder = Folder(workdir, wanted)
    name = 'slots' if v.inner == 'vmap' else 'jobs'
    more = [f'--{name}={v[name].value}'] if v[name].value is not None else []
    asked = {
        **{name: v[name].value for name in ('gpus_per_node', 'grace', 'restarts', 'setup', 'container')},
        **{'array': v.array, 'at_once': v.at_once, 'executor': v.inner, 'arguments': more, 'copy': v.snapshot},
        'options': _slurm_options(v),
    }
    if v.dry_run:
        print(slurm.dry_run(folder, **asked), end='')
        return 0
    folder.record()
    jobs = slurm.submit(folder, **asked)
    print(
        f'submitted job array {jobs["array"]}, and behind it job {jobs["last"]}; `lmx sweep --workdir={workdir} --status` shows how it stands'
    )
    return 0


def _slurm_options(v: Flags) -> dict[str, str]:
    from lmx.launch import slurm

    return {option: str(v[option].value) for option in slurm.OPTIONS if v[option].value is not None}


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition('/')
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise BadInput(f'--part={text} is not I/N with I below N, as in --part=0/4')
    return int(index), int(count)


def _refuse(rest: list[str]) -> None:
    if rest:
        raise BadInput(f'unexpected argument {rest[0]!r}; values are given as --flag=value')


def _no_flags(v: Flags) -> None:
    pass


Command = tuple[Callable[[Flags], None], Callable[[Flags, list[str], list[str]], Any], str]
COMMANDS: dict[str, Command] = {
    'train': (
        _train_flags,
        _train,
        """trains a config; run again with the same --workdir, it resumes.

        lmx train --config=configs/gpt_stdlib.py --workdir=runs/a
        lmx train --config=configs/gpt_stdlib.py:debug                two tiny steps, to see that all fits together
        lmx train --config=configs/gpt_stdlib.py --config.model.dim=256 --config.optim.schedule.peak=3e-4
        """,
    ),
    'sweep': (
        _sweep_flags,
        _sweep,
        """trains a study: one config at several points, with several seeds. Run again with the same --workdir, it goes on; points and
        seeds may have come to the study. Every training leaves an ordinary run in WORKDIR/trials.

        lmx sweep --study=experiments/sweep_lr_width.py --dry_run                       the points, and what they cost
        lmx sweep --study=experiments/sweep_lr_width.py --workdir=sweeps/a              all in one program, or one for each shape
        lmx sweep --study=experiments/sweep_lr_width.py --workdir=sweeps/a --executor=local --jobs=4
        lmx sweep --study=... --workdir=/shared/a --executor=slurm --array=8 --gpus_per_node=1 --time=4:00:00
        lmx sweep --workdir=sweeps/a --status
        lmx sweep --workdir=sweeps/a --take=0003-s1 --to=runs/b                         a training as a run of its own
        """,
    ),
    'launch': (
        _launch_flags,
        _launch,
        """runs one training as a job of several processes, here or on a cluster. If one dies, all start again from the last checkpoint;
        a job that is preempted, or comes to its time limit, saves, is queued again and goes on.

        lmx launch local --processes=4 -- train --config=configs/gpt_stdlib.py --workdir=runs/a
        lmx launch slurm --nodes=2 --gpus_per_node=8 --time=12:00:00 -- train --config=configs/gpt_lm1b.py --workdir=runs/b
        lmx launch kubernetes --image=IMAGE --processes=2 --resource=nvidia.com/gpu=8 --claim=runs -- train ... --workdir=/runs/c | kubectl apply -f -
        lmx launch slurm --dry_run --partition=a100 --setup='module load cuda' -- train --config=... --workdir=...
        """,
    ),
    'evaluate': (
        _evaluate_flags,
        _evaluate,
        """loss, perplexity and whatever else the task measures, on whole splits; also added to eval.jsonl.

        lmx evaluate --workdir=runs/a --checkpoint=best --split=test
        lmx evaluate --workdir=runs/a --config.task.stride=32         with more context per token
        """,
    ),
    'predict': (
        _predict_flags,
        _predict,
        """the task's prediction for a text or a file of them.

        lmx predict --workdir=runs/a --input='def main(' --temperature=0.7 --stop='def '
        lmx predict --workdir=runs/a --inputs=prompts.jsonl --output=continuations.jsonl
        """,
    ),
    'data': (
        _data_flags,
        _data,
        """stages, shapes, decoded examples and the share of padding of a config's data.

        lmx data --config=configs/gpt_stdlib.py
        lmx data --workdir=runs/a --step=100        the very batch of that step; its hash is batch_hash in metrics.jsonl
        """,
    ),
    'report': (
        _report_flags,
        _report,
        """draws one or several runs, or a sweep, finished or not, as one page; of a sweep also results.md, results.csv and results.tex.

        lmx report runs/a [runs/b ...]
        lmx report runs/my_sweep
        lmx report runs/a --attention='import os'        what each head of each layer attends to
        """,
    ),
    'search': (
        _search_flags,
        _search,
        """the texts of a corpus that are nearest to a query; the corpus is embedded once and kept in the cache.

        lmx search --workdir=runs/minilm --corpus=abstracts.txt --query='heat transfer at high speed' --top=3
        lmx search --workdir=runs/minilm --corpus=abstracts.txt        asks for queries until the input ends, and answers in milliseconds
        """,
    ),
    'harness': (
        _harness_flags,
        _harness,
        """a decoder's scores on the tasks of lm-evaluation-harness, equal to those that it gives for the exported model.

        lmx harness --workdir=runs/a --tasks=arc_easy,hellaswag --shots=5
        lmx harness --workdir=runs/a --tasks=mine --include=DIR        tasks of your own, which need no network
        """,
    ),
    'import': (
        _import_flags,
        _import,
        """makes a run of a Hugging Face model, to evaluate, predict with, search with, or start another run from.

        lmx import --from=DIR --workdir=runs/imported
        lmx import --from=DIR --workdir=runs/imported --config=configs/gpt_wikitext2.py        with that config's data and task
        """,
    ),
    'export': (
        _export_flags,
        _export,
        """writes a run's model and tokenizer as a directory that transformers loads, or its word vectors as a text file.

        lmx export --workdir=runs/a --to=DIR --checkpoint=best
        lmx export --workdir=runs/words --to=words.txt.gz        word2vec's format
        """,
    ),
    'runs': (_no_flags, _runs, 'lists the runs and sweeps below a folder: lmx runs [runs]\n'),
    'explain': (
        _explain_flags,
        _explain_key,
        """a value of a config, and whether the file, its argument, a flag or a default set it.

        lmx explain --config=configs/gpt_stdlib.py:debug --config.model.dim=96 model.dim
        """,
    ),
    'diff': (_no_flags, _diff, 'how two configs or runs differ: lmx diff configs/a.py:arg runs/b\n'),
}


if __name__ == '__main__':
    main()
