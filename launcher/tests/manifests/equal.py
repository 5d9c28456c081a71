"""Whether two files hold the same objects, in whatever order."""

import sys

import yaml

one, other = (
    sorted(yaml.safe_load_all(open(path)), key=lambda it: it["kind"]) for path in sys.argv[1:]
)
for here, there in zip(one, other, strict=True):
    assert here == there, f"{here['kind']} differs:\n{here}\n{there}"
