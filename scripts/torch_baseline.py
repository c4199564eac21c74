"""The parts that `opensora bench` times, in PyTorch on the processor: same sizes, random weights.

    python3 -m venv torch && torch/bin/pip install torch diffusers transformers
    torch/bin/python scripts/torch_baseline.py stdit --depth 4 --reps 3 [--dtype bf16] [--train]
    torch/bin/python scripts/torch_baseline.py vae-decode --num-frames 2

Prints one line of JSON. STDiT is written here as the reference computes it without its optional
kernels; attention is PyTorch's own `scaled_dot_product_attention`, which is faster than the
reference's plain products. `--train` is loss and gradients, without an optimizer's step.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

CAPTION_CHANNELS, TOKENS = 4096, 120


def heads(x, count):
    """[B, N, C] -> [B, heads, N, C / heads]"""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def attention(q, k, v, count):
    y = F.scaled_dot_product_attention(*(heads(x, count) for x in (q, k, v)))
    return y.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        self.count, self.qkv, self.proj = count, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        return self.proj(attention(*self.qkv(x).chunk(3, 2), self.count))


class CrossAttention(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        self.count, self.q, self.kv = count, nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, y):
        return self.proj(attention(self.q(x), *self.kv(y).chunk(2, 2), self.count))


class Block(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        self.spatial, self.temporal = SelfAttention(width, count), SelfAttention(width, count)
        self.cross = CrossAttention(width, count)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x, y, t6, frames, positions):
        batch, tokens, width = x.shape
        places = tokens // frames
        shift, scale, gate, shift2, scale2, gate2 = (self.table + t6.view(batch, 6, width)).chunk(6, 1)
        m = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift
        m = self.spatial(m.reshape(batch * frames, places, width))
        x = x + gate * m.reshape(batch, tokens, width)
        m = x.view(batch, frames, places, width).transpose(1, 2).reshape(-1, frames, width)
        if positions is not None:
            m = m + positions
        m = self.temporal(m).view(batch, places, frames, width).transpose(1, 2)
        x = x + gate * m.reshape(batch, tokens, width)
        x = x + self.cross(x, y)
        m = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(F.gelu(self.fc1(m), approximate="tanh"))


class Stdit(nn.Module):
    def __init__(self, depth, width=1152, count=16):
        super().__init__()
        self.patch = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))
        self.t1, self.t2 = nn.Linear(256, width), nn.Linear(width, width)
        self.t6 = nn.Linear(width, 6 * width)
        self.y1, self.y2 = nn.Linear(CAPTION_CHANNELS, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, count) for _ in range(depth))
        self.out = nn.Linear(width, 32)

    def forward(self, latents, timestep, states):
        frames = latents.shape[2]
        x = self.patch(latents).flatten(2).transpose(1, 2)
        t6 = self.t6(F.silu(self.t2(F.silu(self.t1(timestep)))))
        y = self.y2(F.gelu(self.y1(states), approximate="tanh"))
        positions = torch.zeros(1, frames, x.shape[2], dtype=x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, y, t6, frames, positions if index == 0 else None)
        return self.out(F.layer_norm(x, x.shape[2:], eps=1e-6))


def prepare(args, dtype):
    """The part as a function without arguments."""
    latent_side = args.size // 8
    if args.what == "stdit":
        model = Stdit(args.depth).to(dtype)
        latents = torch.randn(args.batch, 4, args.num_frames, latent_side, latent_side, dtype=dtype)
        timestep = torch.randn(args.batch, 256, dtype=dtype)
        states = torch.randn(args.batch, TOKENS, CAPTION_CHANNELS, dtype=dtype)

        def train():
            model.zero_grad()
            model(latents, timestep, states).float().pow(2).mean().backward()

        return train if args.train else lambda: model(latents, timestep, states)
    if args.what == "t5":
        from transformers import T5Config, T5EncoderModel

        config = T5Config(
            d_model=CAPTION_CHANNELS, d_kv=64, d_ff=10240, num_layers=args.layers, num_heads=64,
            vocab_size=32128, feed_forward_proj="gated-gelu",
        )
        model = T5EncoderModel(config).to(dtype).eval()
        ids = torch.randint(0, 32000, (args.batch, TOKENS))
        return lambda: model(input_ids=ids)

    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).to(dtype).eval()
    # Frame by frame: `--micro-batch 1` of `opensora bench`.
    if args.what == "vae-decode":
        latents = torch.randn(args.num_frames, 4, latent_side, latent_side, dtype=dtype)
        return lambda: [vae.decode(frame[None]).sample for frame in latents]
    clip = torch.randn(args.num_frames, 3, args.size, args.size, dtype=dtype)
    return lambda: [vae.encode(frame[None]).latent_dist.mean for frame in clip]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["stdit", "vae-decode", "vae-encode", "t5"])
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    run = prepare(args, {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype])
    reps = []
    with torch.set_grad_enabled(args.train):
        run()
        for _ in range(args.reps):
            began = time.perf_counter()
            run()
            reps.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": statistics.median(reps), "reps": reps, "peak_rss_bytes": peak}
    print(json.dumps({**vars(args), **found, "torch": torch.__version__}))


main()
