"What the tests of several experiments share: a small prepared set, and a training that stops on the way."

import pytest

from handlab.data.prepare import CropSettings, prepare
from handlab.data.rhd import RHD, write_drawn
from handlab.train.experiment import ExperimentData


def drawn_data(folder, settings) -> ExperimentData:
    "32 training frames, 8 of them for validation, and 10 test frames of drawn hands, prepared."
    crops = CropSettings(size=settings.crop, context=settings.context)
    for split, count in (("training", 32), ("evaluation", 10)):
        write_drawn(folder / "rhd", split, count)
        prepare(RHD(folder / "rhd", split), folder / split, crops, workers=1, show_progress=False)
    return ExperimentData(str(folder / "training"), str(folder / "evaluation"), 8)


def stop_at_step(monkeypatch, experiment, train, step: int = 6):
    "Call `train` with batches of a module `experiment` that end in a KeyboardInterrupt at a step."
    batches_of = experiment.training_batches

    def broken(*arguments):
        at = batches_of(*arguments)
        return lambda number: at(number) if number < step else (_ for _ in ()).throw(KeyboardInterrupt)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "training_batches", broken)
        with pytest.raises(KeyboardInterrupt):
            train()
