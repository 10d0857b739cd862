"Whether the Python that runs this has the pinned versions; where handlab is installed, what differs."

import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def normal(name: str) -> str:
    "A package's name as the index compares it."
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict:  # {name: version}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def needed() -> list:  # names of packages
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [normal(re.match(r"[\w.-]+", each)[0]) for each in wanted]


def difference() -> str:  # '' where there is none
    "The first package that is missing or of another version; a build such as '+cpu' makes none."
    found = {normal(each.name): each.version for each in metadata.distributions()}
    for name in ["handlab", *needed()]:
        if name not in found:
            return f"{name} is not installed"
    where = json.loads(metadata.distribution("handlab").read_text("direct_url.json") or "{}").get("url")
    if where != ROOT.as_uri():
        return f"its handlab is that of {where}"
    for name, version in pins().items():
        if name in found and found[name].partition("+")[0] != version:
            return f"{name} {found[name]} is installed, not {version}"
    return ""


if __name__ == "__main__":
    what = difference()
    if what and not what.startswith("handlab "):
        print(f"the active environment {sys.prefix} is not used: {what}; .venv is", file=sys.stderr)
    sys.exit(bool(what))
