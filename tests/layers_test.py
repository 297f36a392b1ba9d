"""The layering of the packages, read from the imports."""

import ast
import pathlib

LAYERS = [
    {'types', 'spec', 'rng', 'trees'},
    {'nn', 'text', 'metrics', 'optim', 'decode', 'objectives'},
    {'models', 'data'},
    {'tasks', 'train', 'interop', 'study'},
    {'sweep', 'plan', 'report', 'launch'},
    {'run'},
    {'cli'},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
NEVER = [('models', 'tasks'), ('tasks', 'models'), ('train', 'models'), ('train', 'tasks'), ('train', 'data'), ('models', 'data')]


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def rooms(root: pathlib.Path):
    for path in sorted((root / 'lmx').rglob('*.py')):
        room = path.relative_to(root / 'lmx').parts[0].removesuffix('.py')
        if room != '__init__':
            yield path, room


def test_imports_go_down(root):
    wrong = []
    for path, room in rooms(root):
        assert room in RANK, f'{path}: give the room {room!r} a layer'
        for name in imports(path):
            parts = name.split('.')
            other = parts[1] if parts[0] == 'lmx' and len(parts) > 1 else None
            if other in RANK and other != room and (RANK[other] > RANK[room] or (room, other) in NEVER):
                wrong.append(f'{path.relative_to(root)}: {room} imports {name}')
            if parts[0] in ('configs', 'experiments'):
                wrong.append(f'{path.relative_to(root)} imports {name}')
            if room == 'data' and parts[0] == 'flax':
                wrong.append(f'{path.relative_to(root)}: data imports flax')
            if room != 'cli' and name.startswith('absl.flags'):
                wrong.append(f'{path.relative_to(root)}: absl flags live in cli.py')
    assert not wrong, '\n'.join(wrong)


def test_configs_do_not_import_each_other(root):
    for path in (root / 'configs').glob('*.py'):
        assert not {name for name in imports(path) if name.split('.')[0] in ('configs', 'experiments')}, path
