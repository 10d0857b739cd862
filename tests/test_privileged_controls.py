"The further controls of stage 2: each differs from RGB PI Net in what its name says, and in nothing else."

import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small_runs import drawn_data

from handlab.core import HandlabError, read_json
from handlab.privileged.experiment import (
    SEARCHED,
    PiLoss,
    make_network,
    predict_all,
    start_network,
    teacher_network,
    train_first,
    train_second,
    train_stage,
    trained_network,
    training_batches,
    untrained_teacher,
    unused_settings,
    write_run,
)
from handlab.privileged.losses import loss_c, loss_inter, loss_mask
from handlab.privileged.stages import (
    ARMS,
    CONTROLS,
    STAGES,
    PiSettings,
    Stage,
    check_pi,
    named_controls,
    stages_of,
)
from handlab.settings import make_settings
from handlab.train.files import load_network, read_losses, weights_fingerprint
from handlab.train.scores import evaluate_on
from handlab.train.search import search_table

SMOKE = make_settings(
    PiSettings, "smoke", train_frames=24, validation_frames=8, test_frames=10, steps_first=4, steps_second=3
)
ALL = replace(SMOKE, controls="all")
TAUGHT = [name for name, kind in CONTROLS.items() if kind.second]


def silent(*_):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drawn_data(tmp_path_factory.mktemp("drawn"), SMOKE)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A run with every control, each tuned by a search of two candidates."
    folder, settings = tmp_path_factory.mktemp("run"), replace(ALL, search=2)
    train_first(settings, data, folder, show=False)
    train_second(settings, data, folder, show=False)
    return folder


def terms_of(stage, data, finished, settings=SMOKE):
    "The terms of a stage's loss where it starts, the batch and what the network says."
    teacher = teacher_network(settings, stage, data, finished)
    batch = training_batches(settings, data, stage, "cpu")(0)
    network = start_network(settings, stage, finished).train()
    terms = PiLoss(settings, teacher, ARMS[stage]).terms(network, batch)
    with torch.no_grad():
        pose, features = start_network(settings, stage, finished).train()(batch.image)
    return terms, batch, pose, features


# ---------------------------------------------------------------- the table of controls
def test_a_control_differs_from_the_privileged_network_in_one_field():
    "`mask` is RGB Net with a mask: one field off the control of equal steps."
    for name in TAUGHT:
        other = STAGES["rgb_pi" if CONTROLS[name].privileged else "rgb_steps"]
        changed = {
            field.name
            for field in fields(Stage)
            if getattr(CONTROLS[name], field.name) != getattr(other, field.name)
        }
        assert len(changed - {"label"}) == 1, (name, changed)


def test_controls_are_asked_for_by_name():
    assert set(stages_of(SMOKE)) == set(STAGES) and set(stages_of(ALL)) == set(ARMS)
    assert named_controls("pi_shuffled, mask") == {"pi_shuffled", "mask"}
    assert named_controls("pi_rgb") == {"pi_rgb", "rgb_other"}  # its teacher is trained too
    with pytest.raises(
        HandlabError, match="PiSettings.controls: pi_shufled is not known; choose from .*pi_shuffled"
    ):
        check_pi(replace(SMOKE, controls="pi_shufled"))
    with pytest.raises(HandlabError, match="PiSettings.batch_size"):
        check_pi(replace(SMOKE, controls="pi_shuffled", batch_size=1))
    with pytest.raises(HandlabError, match="PiSettings.search"):
        check_pi(replace(SMOKE, search=-1))


@pytest.mark.parametrize("stage", TAUGHT)
def test_controls_see_the_same_batches_and_start_as_rgb_net(stage, data, finished):
    for step in (0, 5):
        own, other = (training_batches(SMOKE, data, name, "cpu")(step) for name in (stage, "rgb_pi"))
        assert torch.equal(own.image, other.image) and torch.equal(own.pose, other.pose)
        assert torch.equal(own.depth, other.depth)
    assert weights_fingerprint(start_network(SMOKE, stage, finished)) == weights_fingerprint(
        trained_network(SMOKE, "rgb", finished)
    )


# ---------------------------------------------------------------- what each of them learns from
def test_the_real_arm_learns_the_features_of_its_own_depth(data, finished):
    terms, batch, _, features = terms_of("rgb_pi", data, finished)
    depth_net = trained_network(SMOKE, "depth", finished)
    expected = SMOKE.inter_weight * loss_inter(depth_net(batch.depth)[1], features)
    assert set(terms) == {"pose", "intermediate"}
    torch.testing.assert_close(terms["intermediate"], expected)


def test_shuffled_depth_is_that_of_another_frame(data, finished):
    terms, batch, _, features = terms_of("pi_shuffled", data, finished)
    depth_net, count = trained_network(SMOKE, "depth", finished), len(batch)
    partner = [(row + count // 2) % count for row in range(count)]
    partner = [partner.index(row) for row in range(count)]  # rolled forward
    assert all(row != other for row, other in enumerate(partner))
    expected = SMOKE.inter_weight * loss_inter(depth_net(batch.depth[partner])[1], features)
    torch.testing.assert_close(terms["intermediate"], expected)
    real, *_ = terms_of("rgb_pi", data, finished)
    assert torch.equal(real["pose"], terms["pose"]) and not torch.equal(
        real["intermediate"], terms["intermediate"]
    )


def test_shuffling_is_another_pairing_at_another_step(data):
    "So that no pairing can be learnt by heart."
    partners = {}
    for step in range(12):
        index = training_batches(SMOKE, data, "pi_shuffled", "cpu")(step).index.tolist()
        for row, frame in enumerate(index):
            partners.setdefault(frame, set()).add(index[row - len(index) // 2])
    assert all(frame not in found for frame, found in partners.items())
    assert max(len(found) for found in partners.values()) > 1


def test_untrained_teacher_has_the_starting_weights_and_the_datas_statistics(data):
    start, teacher = make_network(SMOKE, "depth"), untrained_teacher(SMOKE, data)
    for (name, ours), theirs in zip(teacher.named_parameters(), start.parameters()):
        assert torch.equal(ours, theirs), name
        assert not ours.requires_grad
    with torch.no_grad():
        batch = training_batches(SMOKE, data, "depth", "cpu")(0)
        normal = [layer for layer in teacher.modules() if isinstance(layer, torch.nn.BatchNorm2d)][0]
        into = []
        handle = normal.register_forward_hook(lambda _, given, out: into.append(out.clone()))
        teacher(batch.depth)
        handle.remove()
    assert not teacher.training
    np.testing.assert_allclose(into[0].mean().item(), 0, atol=0.1)
    np.testing.assert_allclose(into[0].std().item(), 1, atol=0.1)


def test_rgb_teacher_is_another_rgb_net_that_sees_the_image(data, finished):
    teacher = teacher_network(SMOKE, "pi_rgb", data, finished)
    own = trained_network(SMOKE, "rgb", finished)
    assert weights_fingerprint(teacher) != weights_fingerprint(own)
    first = {
        stage: read_json(finished / stage / "finished.json")["steps"]
        for stage in ("depth", "rgb", "rgb_other")
    }
    assert len(set(first.values())) == 1  # trained as long as Depth Net
    assert torch.equal(
        training_batches(SMOKE, data, "rgb_other", "cpu")(1).image,
        training_batches(SMOKE, data, "rgb", "cpu")(1).image,
    )
    terms, batch, _, features = terms_of("pi_rgb", data, finished)
    expected = SMOKE.inter_weight * loss_inter(teacher(batch.image)[1], features)
    torch.testing.assert_close(terms["intermediate"], expected)


def test_output_distillation_learns_joints_and_leaves_the_features_alone(data, finished):
    settings = replace(SMOKE, joints_weight=7.0)
    terms, batch, pose, _ = terms_of("pi_joints", data, finished, settings)
    taught = trained_network(SMOKE, "depth", finished)(batch.depth)[0]
    assert set(terms) == {"pose", "joints"}
    torch.testing.assert_close(terms["joints"], 7 * loss_c(pose, taught))
    real, *_ = terms_of("rgb_pi", data, finished, settings)
    assert torch.equal(real["pose"], terms["pose"])  # the true joints are learnt as before


def test_masks_alone_and_with_features(data, finished):
    for stage, names in (("mask", {"pose", "mask"}), ("pi_mask", {"pose", "intermediate", "mask"})):
        terms, batch, _, features = terms_of(stage, data, finished)
        assert set(terms) == names
        torch.testing.assert_close(terms["mask"], SMOKE.inter_weight * loss_mask(features, batch.mask))
        weighed, *_ = terms_of(stage, data, finished, replace(SMOKE, mask_weight=3.0))
        torch.testing.assert_close(weighed["mask"], 3 * loss_mask(features, batch.mask))
    real, *_ = terms_of("rgb_pi", data, finished)
    torch.testing.assert_close(real["intermediate"], terms["intermediate"])
    plain, *_ = terms_of("rgb_steps", data, finished, replace(SMOKE, mask_weight=3.0))
    assert set(plain) == {"pose"}  # the control of the paper's network has neither


@pytest.mark.parametrize("stage", TAUGHT)
def test_without_its_term_a_control_is_rgb_net_trained_on(stage, data, finished, tmp_path):
    "With the weights of its terms 0, every control ends with the weights of the control of equal steps."
    for name in ("depth", "rgb", "rgb_other"):
        shutil.copytree(finished / name, tmp_path / name)
    off = replace(SMOKE, inter_weight=0.0, joints_weight=0.0, mask_weight=0.0)
    for name in (stage, "rgb_steps"):
        train_stage(name, off, data, tmp_path, report=silent)
    assert weights_fingerprint(trained_network(SMOKE, stage, tmp_path)) == weights_fingerprint(
        trained_network(SMOKE, "rgb_steps", tmp_path)
    )
    teachers = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("depth", "rgb_other")}
    train_stage(stage, SMOKE, data, tmp_path, into="on", report=silent)
    assert weights_fingerprint(trained_network(SMOKE, stage, tmp_path)) != weights_fingerprint(
        load_network(tmp_path / "on" / "model.safetensors", make_network(SMOKE, stage))
    )
    assert teachers == {name: (tmp_path / name / "model.safetensors").read_bytes() for name in teachers}


# ---------------------------------------------------------------- the search, and the run folder
def test_every_network_of_stage_two_has_the_same_number_of_trials(finished):
    found = read_json(finished / "search.json")
    second = {stage for stage, kind in ARMS.items() if kind.second}
    assert set(found["epe"]) == second and found["split"] == "validation"
    assert all(len(errors) == 2 for errors in found["epe"].values())
    for stage, errors in found["epe"].items():
        folders = [finished / "search" / f"{stage}-{number}" for number in (0, 1)]
        assert errors == pytest.approx(
            [read_losses(each / "losses.csv", "validation")["epe"][-1] for each in folders]
        )
        chosen = found["chosen"][stage]
        assert errors[chosen] == min(errors)
        weights = [
            read_json(each / "finished.json")["weights"] for each in (folders[chosen], finished / stage)
        ]
        assert weights[0] == weights[1]  # the chosen settings are trained into the stage's folder
    table = search_table(found, {stage: kind.label for stage, kind in ARMS.items()}, "network")
    assert len(table) == 2 * len(second) and table.groupby("network").chosen.sum().eq(1).all()
    assert "PI, shuffled depth" in set(table.network)


def test_settings_that_a_network_does_not_have_are_not_tried_on_it(finished):
    found = read_json(finished / "search.json")["candidates"]
    as_they_are = {name: getattr(SMOKE, name) for name in SEARCHED}
    weights = {"inter_weight", "joints_weight"}
    expected = {"rgb_pi": {"inter_weight"}, "rgb_steps": set(), "pi_joints": {"joints_weight"}}
    for stage, used in expected.items():
        kept = set(SEARCHED) - weights | used
        assert found[stage][0] == {name: as_they_are[name] for name in kept} and set(found[stage][1]) == kept


@pytest.mark.parametrize("stage", [stage for stage, kind in ARMS.items() if kind.second])
def test_an_unused_setting_changes_no_loss(stage, data, finished):
    "... and one that is used does."
    batch = training_batches(SMOKE, data, stage, "cpu")(0)
    teacher = teacher_network(SMOKE, stage, data, finished)

    def loss(settings):
        network = start_network(settings, stage, finished).train()
        return float(PiLoss(settings, teacher, ARMS[stage])(network, batch)["loss"].detach())

    plain = loss(SMOKE)
    for name in ("inter_weight", "joints_weight"):
        other = loss(replace(SMOKE, **{name: 3 * getattr(SMOKE, name)}))
        assert (other == plain) == (name in unused_settings(ARMS[stage])), name


def test_the_run_folder_has_every_control(data, finished):
    settings = replace(ALL, search=2)
    predictions = predict_all(settings, data, finished)
    assert set(predictions) == {*ARMS, "mean_pose"}
    metrics = write_run(finished, settings, data, predictions, evaluate_on(data.test, predictions, "pooled"))
    assert set(metrics["stages"]) == set(ARMS) and metrics["labels"]["pi_rgb"] == "PI, RGB teacher"


def test_settings_of_the_plan_leave_trained_networks_valid(data, finished):
    "Controls can be added to a finished run."
    before = read_json(finished / "rgb" / "finished.json")
    train_stage("rgb", replace(SMOKE, controls="mask", search=5), data, finished, report=silent)
    assert read_json(finished / "rgb" / "finished.json") == before
