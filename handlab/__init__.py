__version__ = "0.1.0"


def __getattr__(name):
    "`handlab.load`, imported when it is used: torch takes seconds to import."
    if name == "load":
        from handlab.predict.networks import load

        return load
    raise AttributeError(f"module 'handlab' has no attribute {name!r}")
