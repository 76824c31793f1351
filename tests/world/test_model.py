"""The world model: its modes, its symmetry, what it learns, its configurations and its file."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from evoworld.world.autoencoder import AutoencoderConfig
from evoworld.world.configs import CONFIGS
from evoworld.world.dit import DiTConfig
from evoworld.world.flow import add_noise, flow_loss, sample_time
from evoworld.world.memory_encoder import MemoryEncoderConfig
from evoworld.world.model import WorldModel, WorldModelConfig
from evoworld.world.model_file import ModelError, config_from_dict, load_weights

DIT = DiTConfig(latent_channels=6, dim=32, num_heads=2, depth=2, stem_dim=8, text_dim=12, feature_dim=0, rotary_width=8)
SMALL = WorldModelConfig(
    height=16,
    num_frames=2,
    autoencoder=AutoencoderConfig(latent_channels=6, dim=8, refiner_dim=8),
    dit=DIT,
    memory=None,
    text="none",
)
PIXELS = replace(
    SMALL,
    autoencoder=AutoencoderConfig(kind="none", latent_channels=64, refiner_dim=8),
    dit=replace(DIT, latent_channels=64),
)


def new_model(config=SMALL):
    torch.manual_seed(0)
    return WorldModel(config).eval()


def draw(model, condition, **options):
    return model.sample(condition, generator=torch.Generator().manual_seed(3), **options)


@pytest.mark.parametrize("config", [SMALL, PIXELS], ids=["vae", "none"])
def test_samples_keep_what_is_known_and_visible_before_training(config, random_condition):
    condition = random_condition()
    rgbd = draw(new_model(config), condition)
    assert rgbd.shape == condition.known.shape and torch.isfinite(rgbd).all()
    filled = condition.filled()
    colour = condition.visibility.maximum(condition.known_mask[..., 0]) == 1
    depth = condition.visibility.maximum(condition.known_mask[..., 1]) == 1
    torch.testing.assert_close(rgbd[..., :3][colour], filled[..., :3][colour])
    torch.testing.assert_close(rgbd[..., 3][depth], filled[..., 3][depth])
    if config is PIXELS:
        torch.testing.assert_close(rgbd, filled, msg="nothing else is said without a network")


@pytest.mark.parametrize("config", [SMALL, PIXELS], ids=["vae", "none"])
def test_narrow_holes_are_filled_without_the_network(config, random_condition, perturb):
    """Those of two columns; one of twelve is the network's. (Over the poles the one lies beside the other.)"""
    model, condition = perturb(new_model(config), scale=0.05), random_condition()
    visibility = torch.ones_like(condition.visibility)
    visibility[..., 2:4] = 0
    visibility[..., 10:22] = 0
    nothing = torch.zeros_like(condition.known_mask)
    condition = replace(condition, known_mask=nothing, visibility=visibility)
    rgbd, filled = (x[:, :, 3:13] for x in (draw(model, condition), condition.filled()))
    assert torch.equal(rgbd[..., 2:4, :], filled[..., 2:4, :])
    assert (rgbd - filled)[..., 14:18, :].abs().amax(-1).gt(1e-3).all()


def test_the_same_noise_gives_the_same_frames(random_condition, perturb):
    model, condition = perturb(new_model(), scale=0.05), random_condition()
    for steps in (1, 2):
        first, again = (draw(model, condition, steps=steps) for _ in range(2))
        assert torch.equal(first, again)
        options = {"steps": steps, "roll": False}
        first, other = (model.sample(condition, generator=torch.Generator().manual_seed(i), **options) for i in (3, 4))
        assert ((other - first).abs().max() > 1e-3) == (steps > 1)  # the first one is made of no noise


@pytest.mark.parametrize("columns", [4, 12])
def test_rolls_with_its_condition(columns, random_condition, perturb, monkeypatch):
    """Where the filling does: it is turned along, as its pyramid has seams of its own at other columns."""
    from evoworld.world.condition import Condition

    model, condition = perturb(new_model(), scale=0.05), random_condition()
    filled = condition.filled()
    latents = torch.randn(1, 2, 4, 8, 6, generator=torch.Generator().manual_seed(0))

    def predict(condition, filled, latents):
        monkeypatch.setattr(Condition, "filled", lambda self: filled)
        return model.decode(model(latents, torch.tensor([0.4]), condition), condition)

    output = predict(condition, filled, latents)
    turned = predict(condition.roll(columns), filled.roll(columns, -2), latents.roll(columns // 4, -2))
    torch.testing.assert_close(turned, output.roll(columns, -2), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["text", "panorama", "photo", "depth", "memory"])
def test_one_set_of_weights_takes_every_mode(mode, random_condition, perturb):
    model, condition = perturb(new_model(), scale=0.05), random_condition()
    nothing = torch.zeros_like(condition.known_mask)
    mask = nothing.clone()
    if mode == "panorama":
        mask[:, 0] = 1
    if mode == "photo":
        mask[:, 0, 4:12, 8:24, 0] = 1
    if mode == "depth":
        mask[:, 0, ..., 0] = 1
    visibility = condition.visibility if mode == "memory" else torch.zeros_like(condition.visibility)
    text = torch.ones_like(condition.text_mask) if mode == "text" else torch.zeros_like(condition.text_mask)
    rgbd = draw(model, replace(condition, known_mask=mask, visibility=visibility, text_mask=text), steps=2)
    assert torch.isfinite(rgbd).all() and rgbd.shape == condition.known.shape


def test_learns_what_filling_cannot_know(random_condition):
    """Frames are all of one colour, that the words tell; little is visible of them."""
    torch.manual_seed(0)
    model = WorldModel(PIXELS)
    condition = random_condition(batch=4)
    level = torch.tensor([-0.8, -0.2, 0.3, 0.9])
    target = level.view(4, 1, 1, 1, 1).expand(4, 2, 16, 32, 4).contiguous()
    nothing = torch.zeros_like(condition.visibility)
    condition = replace(
        condition,
        known_mask=torch.zeros_like(condition.known_mask),
        visibility=nothing,
        position=torch.zeros_like(condition.position),
        text=level.view(4, 1, 1).expand(4, 3, 12).contiguous(),
    )
    latents = model.autoencoder.encode(target)
    optimizer = torch.optim.Adam(model.dit.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        time, noise = sample_time(4, generator), torch.randn(latents.shape, generator=generator)
        loss = flow_loss(model(add_noise(latents, noise, time), time, condition), latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fill_only = (condition.filled() - target).abs().mean()
    error = (draw(model.eval(), condition) - target).abs().mean()
    wordless = (draw(model, condition.without_text()) - target).abs().mean()
    assert error < 0.4 * fill_only and error < 0.6 * wordless


def test_text_of_a_model_without_words():
    tokens, mask = new_model().encode_text(["a room", ""])
    assert tokens.shape == (2, 0, 12) and mask.shape == (2, 0)


def test_named_configurations_are_whole_and_tiny_is_small():
    assert list(CONFIGS) == ["tiny", "base", "large"]
    for config in CONFIGS.values():
        assert config.text == "minilm" and config.dit.text_dim == 384
        with torch.device("meta"):
            model = WorldModel(config)
        count = sum(parameter.numel() for parameter in model.parameters())
        if config is CONFIGS["tiny"]:
            assert count <= 9e6 and (config.height, config.num_frames) == (64, 1)
            assert 2 * sum(tensor.numel() for tensor in model.state_dict().values()) < 20e6
    assert count > 5e8


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dit": replace(DIT, token_size=8)}, "dit.token_size: expected 4"),
        ({"dit": replace(DIT, latent_channels=5)}, "dit.latent_channels: expected 6"),
        ({"dit": replace(DIT, feature_dim=4)}, "dit.feature_dim: expected 0"),
        ({"height": 18}, "height: expected a multiple of 4"),
        ({"num_frames": 0}, "num_frames: expected at least 1"),
        ({"memory": MemoryEncoderConfig(height=64), "dit": replace(DIT, feature_dim=16)}, "memory.height: expected 16"),
    ],
)
def test_configurations_whose_parts_do_not_fit(change, name):
    with pytest.raises(ValueError, match=f"WorldModelConfig: {name}"):
        replace(SMALL, **change)


@pytest.mark.parametrize("with_memory", [False, True])
def test_a_file_holds_weights_and_configuration(with_memory, tmp_path, random_condition, perturb):
    memory = MemoryEncoderConfig(height=16, feature_dim=8, frame_dim=8) if with_memory else None
    config = replace(SMALL, memory=memory, dit=replace(DIT, feature_dim=8 if with_memory else 0))
    model, path = perturb(new_model(config), scale=0.05), tmp_path / "new" / "model.safetensors"
    model.autoencoder.latent_mean += 0.5
    model.save(path)
    loaded = WorldModel.load(path)
    assert loaded.config == config and not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    condition = random_condition(feature_dim=8 if with_memory else 0)
    assert torch.equal(draw(loaded, condition), draw(model, condition))


def test_a_file_in_half_precision(tmp_path, perturb):
    model = perturb(new_model(), scale=0.05)
    model.save(tmp_path / "half.safetensors", torch.float16)
    model.save(tmp_path / "full.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    state = WorldModel.load(tmp_path / "half.safetensors").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor.half().float()), name


def test_weights_of_others_stay_in_their_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4), latent_channels=3, norm_num_groups=2, **kinds
    ).save_pretrained(tmp_path / "kl")
    autoencoder = AutoencoderConfig("diffusers", latent_channels=6, refiner_dim=8, folder=str(tmp_path / "kl"))
    model = new_model(replace(SMALL, autoencoder=autoencoder))
    model.save(tmp_path / "model.safetensors")
    loaded = WorldModel.load(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "frozen" in name]  # noqa: SIM118


def rewritten(path, tensors=None, **metadata):
    """A model file with other tensors or metadata."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **metadata}
    save_file(load_file(path) if tensors is None else tensors, path, header)


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_other_file(path):
    path.write_bytes(b"not safetensors at all")


def damage_other_format(path):
    rewritten(path, format="evoworld-world")


def damage_version(path):
    rewritten(path, version="99")


def damage_config(path):
    rewritten(path, config="{")


def damage_other_config(path):
    config = replace(SMALL, dit=replace(DIT, dim=64))
    rewritten(path, config=json.dumps(asdict(config)))


def damage_deeper_config(path):
    config = replace(SMALL, dit=replace(DIT, depth=3))
    rewritten(path, config=json.dumps(asdict(config)))


def damage_unfit_config(path):
    rewritten(path, config=json.dumps({**asdict(SMALL), "height": 18}))


def damage_field(path):
    rewritten(path, config=json.dumps({**asdict(SMALL), "colour": 1}))


def damage_type(path):
    rewritten(path, config=json.dumps({**asdict(SMALL), "num_frames": "two"}))


def damage_nan(path):
    from safetensors.torch import load_file

    tensors = load_file(path)
    tensors["dit.no_text"][0] = torch.nan
    rewritten(path, tensors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "expected a whole safetensors file, got a truncated or other one"),
        (damage_other_file, "expected a whole safetensors file, got a truncated or other one"),
        (damage_other_format, "expected a model of evoworld, got another safetensors file"),
        (damage_version, "written by a later version of evoworld"),
        (damage_config, "config: expected JSON"),
        (damage_other_config, "expected shape"),
        (damage_deeper_config, "of which these miss or add: dit.blocks.2.*and .* more"),
        (damage_unfit_config, "height: expected a multiple of 4, got 18"),
        (damage_field, "expected the fields of WorldModelConfig.*: colour"),
        (damage_type, "config.num_frames: expected int, got 'two'"),
        (damage_nan, "dit.no_text: expected finite values"),
    ],
)
def test_files_that_are_no_such_model(damage, message, tmp_path):
    path = tmp_path / "model.safetensors"
    new_model().save(path)
    damage(path)
    with pytest.raises(ModelError, match=message) as error:
        WorldModel.load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize("damage", [damage_truncated, damage_other_format, damage_version, damage_nan])
def test_weights_are_not_taken_from_such_files(damage, tmp_path):
    path, model = tmp_path / "model.safetensors", new_model()
    model.save(path)
    damage(path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match="model.safetensors: ") as error:
        load_weights(model, path)
    assert str(error.value).count(str(path)) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        WorldModel.load(tmp_path / "nothing.safetensors")
    with pytest.raises(IsADirectoryError):
        WorldModel.load(tmp_path)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_configurations_survive_json(name):
    config = CONFIGS[name]
    assert config_from_dict(WorldModelConfig, json.loads(json.dumps(asdict(config)))) == config
    assert config_from_dict(WorldModelConfig, json.loads(json.dumps(asdict(PIXELS)))) == PIXELS


def test_a_field_that_came_after_a_file_is_its_default():
    earlier = asdict(SMALL)
    del earlier["uses_memory"], earlier["dit"]["joint"]
    assert config_from_dict(WorldModelConfig, earlier) == replace(SMALL, dit=replace(SMALL.dit, joint=True))
    with pytest.raises(ValueError, match=r"config\.dit: expected the fields of DiTConfig.*: heads"):
        config_from_dict(WorldModelConfig, {"dit": {"heads": 3}})
