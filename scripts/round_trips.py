"""Loads exports of `opensora` in diffusers, transformers and Open-Sora, and compares the results.

    python3 -m venv venv
    venv/bin/pip install torch==2.9.0 torchvision==0.24.0 diffusers==0.42.1 transformers==5.24.0 timm einops
    git clone --branch v1.0.0 https://github.com/hpcaitech/Open-Sora
    cargo build --release -p opensora-cli
    venv/bin/python scripts/round_trips.py target/release/opensora --open-sora Open-Sora

Trains a tiny VAE, text encoder and STDiT for a few steps, loads each export with the library in the table
below, and computes on random inputs. `opensora verify` then compares its own results with those. The
bundled demo model is checked as well. Fails if weights are missing or left over, or a result exceeds its
tolerance.

| export | loaded by |
|---|---|
| VAE | `diffusers.AutoencoderKL.from_pretrained` |
| text encoder | `transformers.T5EncoderModel.from_pretrained` |
| STDiT | `opensora.models.stdit.STDiT.load_state_dict(strict=True)` of a checkout of Open-Sora v1.0.0 |

Tolerances are twenty times the difference between the library's results in f32 and f64, at least 1e-5. Of
Open-Sora only the model's code is run: its imports of ColossalAI, MMEngine and xFormers are replaced by
the few functions that the model uses.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import diffusers
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
SCALE = 0.18215
PROGRAM = None

VAE = """
[vae.config]
block_out_channels = [8, 16, 16]
layers_per_block = 1
norm_num_groups = 4
[data.clip]
num_frames = 1
image_size = [32, 32]
[run]
steps = 3
batch_size = 2
"""

T5 = """
[t5]
max_length = 16
[t5.config]
vocab_size = 160
d_model = 16
d_kv = 8
d_ff = 32
num_layers = 2
num_heads = 2
[run]
steps = 3
batch_size = 2
"""

STDIT = """
[stdit.config]
caption_channels = 16
model_max_length = 16
hidden_size = 32
depth = 2
num_heads = 2
space_scale = 0.5
[data.clip]
num_frames = 4
frame_interval = 1
image_size = [32, 48]
[optimizer]
learning_rate = 1e-2
ema_decay = 0.5
[run]
steps = 10
batch_size = 2
"""


def opensora(*arguments):
    """Runs the program and returns its standard output."""
    command = [PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def train(folder):
    """Trains tiny models; returns the folder of each export."""
    data = folder / "data"
    opensora("data", "demo", "--out", data, "--clips", 6, "--stills", 4, "--size", 48, "--num-frames", 6, "-q")
    for name, recipe in [("vae", VAE), ("t5", T5), ("stdit", STDIT)]:
        (folder / f"{name}.toml").write_text(recipe)
    recipe = lambda name: ["--recipe", folder / f"{name}.toml", "--out", folder / name, "-q"]
    opensora("train-vae", *recipe("vae"), "--data", data / "stills.csv")
    opensora("train", *recipe("t5"), "--data", data / "clips.csv")
    vae, t5 = folder / "vae/vae", folder / "t5/t5"
    opensora("train", *recipe("stdit"), "--data", data / "clips.csv", "--vae", vae, "--t5", t5)
    return vae, t5, folder / "stdit/stdit"


def tolerance(f32, f64):
    """Returns twenty times the measured rounding error of f32, at least 1e-5."""
    return max(1e-5, 20 * (f32.double() - f64).abs().max().item())


def verify(folder, kind, weights, config, inputs, compute, more={}):
    """Writes a golden case with the results of `compute(dtype)` and runs `opensora verify` on it."""
    folder.mkdir()
    f32, f64 = compute(torch.float32), compute(torch.float64)
    # Integers are exact.
    tolerances = {
        name: {"atol": tolerance(f32[name], f64[name]), "rtol": 1e-5}
        for name in f32
        if f32[name].is_floating_point()
    }
    contiguous = lambda tensors: {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous(inputs), folder / "inputs.safetensors")
    save_file(contiguous(f32), folder / "expected.safetensors")
    shutil.copy(weights, folder / "weights.safetensors")
    case = {"kind": kind, "config": config, "weights": "weights.safetensors", "tolerances": tolerances, **more}
    (folder / "case.json").write_text(json.dumps(case))
    [result] = json.loads(opensora("verify", folder, "--json"))["cases"]
    for check in result["checks"]:
        error, bound = check["max_abs_error"], check["bound"]
        print(f"    {check['tensor']:<28} max abs error {error:.2e}, tolerance {bound:.2e}")
    assert result["passed"] and len(result["checks"]) == len(f32), result


def loaded(kind, folder):
    """Loads a model of class `kind`; fails if weights are missing or left over."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {name: list(keys) for name, keys in info.items() if keys and name != "error_msgs"}
    # One tensor under two names, as in transformers' own files.
    wrong.pop("tied_weights_keys", None)
    assert not wrong and not info.get("error_msgs"), (folder, info)
    return model.eval()


def check_vae(name, folder, cases):
    vae = loaded(diffusers.AutoencoderKL, folder)
    config = json.loads((folder / "config.json").read_text())
    for blocks in ["down_block_types", "up_block_types"]:
        assert list(vae.config[blocks]) == config[blocks], blocks
    assert vae.config.scaling_factor == SCALE
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    batch, frames, height, width = 2, 3, 8 * factor, 6 * factor
    latent = (batch, config["latent_channels"], frames, height // factor, width // factor)
    x = torch.rand(batch, 3, frames, height, width) * 2 - 1
    noise, z = torch.randn(latent), torch.randn(latent) * SCALE
    # [B, C, T, H, W] <-> [B*T, C, H, W]
    fold = lambda clip: clip.transpose(1, 2).flatten(0, 1)
    unfold = lambda frames: frames.unflatten(0, (batch, -1)).transpose(1, 2)

    @torch.no_grad()
    def compute(dtype):
        model = vae.to(dtype)
        posterior = model.encode(fold(x.to(dtype))).latent_dist
        mean, logvar = unfold(posterior.mean), unfold(posterior.logvar)
        return {
            "moments": unfold(posterior.parameters),
            "mean": mean,
            "logvar": logvar,
            "latents": (mean + torch.exp(0.5 * logvar) * noise.to(dtype)) * SCALE,
            "decoded": unfold(model.decode(fold(z.to(dtype)) / SCALE).sample),
        }

    print(f"{name}: AutoencoderKL.from_pretrained, nothing missing or left over")
    weights = folder / "diffusion_pytorch_model.safetensors"
    verify(cases / name.replace(" ", "-"), "vae", weights, config, {"x": x, "noise": noise, "z": z}, compute)


def check_t5(name, folder, cases):
    t5 = loaded(transformers.T5EncoderModel, folder)
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(3, config["vocab_size"], (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[1, 5:] = 0

    @torch.no_grad()
    def compute(dtype):
        model = t5.to(dtype)
        return {
            "last_hidden_state": model(input_ids=ids, attention_mask=mask).last_hidden_state,
            "last_hidden_state_nomask": model(input_ids=ids).last_hidden_state,
        }

    print(f"{name}: T5EncoderModel.from_pretrained, nothing missing or left over")
    inputs = {"input_ids": ids, "attention_mask": mask}
    verify(cases / name.replace(" ", "-"), "t5-encoder", folder / "model.safetensors", config, inputs, compute)


def stdit_class(checkout):
    """Returns the class `STDiT` of a checkout of Open-Sora v1.0.0."""

    def module(name, **contents):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(contents)
        return sys.modules[name]

    class Registry:
        def __init__(self, *arguments, **settings):
            pass

        def register_module(self, *arguments, **settings):
            return lambda wrapped: wrapped

    def attention(q, k, v, p=0.0, attn_bias=None):
        # [1, tokens of all samples, heads, width]: samples are concatenated.
        parts = zip(*(tensor.split(lengths, 1) for tensor, lengths in zip((q, k, v), attn_bias)))
        parts = [[tensor.transpose(1, 2) for tensor in part] for part in parts]
        outputs = [torch.nn.functional.scaled_dot_product_attention(*part) for part in parts]
        return torch.cat([output.transpose(1, 2) for output in outputs], 1)

    class BlockDiagonalMask:
        @staticmethod
        def from_seqlens(queries, keys):
            return [list(queries), list(keys), list(keys)]

    module("mmengine")
    module("mmengine.registry", Registry=Registry)
    fmha = types.SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)
    module("xformers").ops = module("xformers.ops", memory_efficient_attention=attention, fmha=fmha)
    module("colossalai")
    for name, contents in [
        ("booster", ["Booster"]),
        ("checkpoint_io", ["GeneralCheckpointIO"]),
        ("cluster", ["DistCoordinator"]),
    ]:
        module(f"colossalai.{name}", **dict.fromkeys(contents, object))
    # Stubs for packages whose imports need more than the model.
    for name in ["opensora", "opensora.models", "opensora.utils"]:
        module(name).__path__ = [str(Path(checkout, *name.split(".")))]
    return importlib.import_module("opensora.models.stdit.stdit").STDiT


def check_stdit(name, file, config, size, checkout, cases, has_tables=True):
    """Checks an STDiT against Open-Sora's; `size` of the latents is [T, h, w]."""
    weights = load_file(file)
    known = ["in_channels", "patch_size", "hidden_size", "depth", "num_heads", "mlp_ratio", "pred_sigma",
             "caption_channels", "model_max_length", "space_scale", "time_scale"]
    settings = {key: config[key] for key in known if key in config}
    model = stdit_class(checkout)(input_size=size, **settings)
    own = {key: model.state_dict()[key].clone() for key in ["pos_embed", "pos_embed_temporal"]}
    assert all((key in weights) == has_tables for key in own), name
    weights = {**own, **weights}
    model.load_state_dict(weights, strict=True)
    model.eval()
    tables = "" if has_tables else ", position tables computed by Open-Sora"
    print(f"{name}: STDiT.load_state_dict(strict=True), {len(weights)} tensors{tables}")
    for key, table in own.items():
        error = (table - weights[key]).abs().max().item()
        print(f"    {key:<28} max abs difference from Open-Sora's {error:.2e}")
        assert error < 1e-6, key

    tokens, width = config["model_max_length"], config["caption_channels"]
    x, y = torch.randn(2, config["in_channels"], *size), torch.randn(2, 1, tokens, width)
    mask = torch.ones(2, tokens, dtype=torch.int64)
    mask[1, tokens // 2 :] = 0
    holes = mask.clone()
    holes[:, 1] = 0
    integer, fractional = torch.tensor([7, 951]), torch.tensor([12.25, 633.5])

    @torch.no_grad()
    def compute(dtype):
        model.to(dtype)
        model.dtype = dtype
        run = lambda t, mask: model(x, t, y, mask)
        return {
            "out_mask_tint": run(integer, mask),
            "out_nomask_tint": run(integer, None),
            "out_mask_tfrac": run(fractional, mask),
            "out_holes_tfrac": run(fractional, holes),
            "out_mask_row0_repeated_tint": run(integer, mask[:1]),
            "pos_embed": model.pos_embed,
            "pos_embed_temporal": model.pos_embed_temporal,
        }

    inputs = {"x": x, "y": y, "timestep_int": integer, "timestep_frac": fractional, "mask": mask, "mask_holes": holes}
    settings["input_size"] = size
    verify(cases / name.replace(" ", "-"), "stdit", file, settings, inputs, compute)


def main():
    global PROGRAM
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="path of the opensora program")
    parser.add_argument("--open-sora", help="checkout of Open-Sora v1.0.0; omitted: STDiT is not checked")
    parser.add_argument("--keep", type=Path, help="folder for exports and cases (default: temporary, deleted)")
    args = parser.parse_args()
    PROGRAM = str(Path(args.program).resolve())
    for package in [torch, diffusers, transformers, safetensors]:
        print(f"{package.__name__} {package.__version__}")
    torch.manual_seed(0)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        cases = folder / "cases"
        cases.mkdir(parents=True)
        vae, t5, stdit = train(folder)
        demo = ROOT / "crates/demo/model"
        for name, path in [("exported VAE", vae), ("demo VAE", demo / "vae")]:
            check_vae(name, path, cases)
        for name, path in [("exported text encoder", t5), ("demo text encoder", demo / "t5")]:
            check_t5(name, path, cases)
        if args.open_sora:
            config = json.loads((stdit / "config.json").read_text())
            for name in ["ema", "model"]:
                file = stdit / f"{name}.safetensors"
                check_stdit(f"exported STDiT {name}", file, config, [4, 8, 12], args.open_sora, cases)
            config = json.loads((demo / "model.json").read_text())["denoiser_config"]
            # The bundled file was written without the tables.
            file = demo / "stdit.safetensors"
            check_stdit("demo STDiT", file, config, [8, 12, 12], args.open_sora, cases, has_tables=False)
    print("all exports load and give the same results within tolerance")


if __name__ == "__main__":
    main()
