import importlib as _importlib
import sys as _sys

__version__ = "0.1.0"
COMMANDS = {
    "handlab.graph.run": "every table and figure of both papers, or single runs",
    "handlab.sim.write": "a simulated twin in the official layout",
    "handlab.predict": "the joints of hands in photographs and videos",
    "handlab.predict.calibrate": "which error to expect of a network, from validation frames",
    "handlab.pages.measure": "what the pages show of a run beside its predictions, measured and kept with it",
    "handlab.results.ship": "small copies of finished runs, with which every page can be made",
    "handlab.pages.front": "what was found, into README.md and the index; the outputs saved in the pages",
    "handlab.pages.manifest": "the list of a folder of tables and figures",
}


def _refuse_other_modules():
    "`python -m` with a module that is not a command would do nothing and say nothing."
    words = _sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if module.split(".")[0] != "handlab" or module in COMMANDS:
        return
    lines = [f"handlab: {module} is not a command; the commands are, each with --help:"]
    lines += [f"  python -m {name:25}  {what}" for name, what in COMMANDS.items()]
    helped = "--help" in words or "-h" in words
    print("\n".join(lines), file=_sys.stdout if helped else _sys.stderr)
    _sys.exit(0 if helped else 2)


if _sys.argv[:1] == ["-m"]:  # Python looks for the module that it is to run
    _refuse_other_modules()


def __getattr__(name):
    "`handlab.load`, found when it is used: torch takes seconds to import."
    if name == "load":  # by name, so that no module's code depends on all of them through this file
        return _importlib.import_module("handlab.predict.networks").load
    raise AttributeError(f"module 'handlab' has no attribute {name!r}")
