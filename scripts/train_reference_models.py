#!/usr/bin/env python
"""Train the reference models: a small Llama target and a smaller draft, on CPython's own standard library.

There is no model hub on the machines that test this project, and random weights say nothing about perplexity,
agreement or acceptance. So the project ships its own models, and this script is all that it takes to make them:

    corpus      every `.py` file of the running Python's standard library, split by file: 4 % of the non-test
                files are held out, all else (tests included) is training text
    tokenizer   byte-level BPE, 4,096 entries, `<|bos|>` first in every document, `<|eos|>` last
    target      Llama, 6 layers x 256, 8 heads over 4 KV heads, head_dim 32, tied embeddings: 5.5 M parameters
    draft       Llama, 2 layers x 128, same tokenizer: 0.9 M parameters
    loss        next token, plus LayerSkip's early-exit loss: each step one exit in rotation, through the shared final
                norm and head (arXiv 2404.16710, section 4.1), so that every exit of the target predicts
    optimizer   Muon for the matrices of the layers, AdamW for embedding and norms; one warm-up, one cosine to zero
    context     512 tokens for the first 90 % of the steps, then 2,048 at the same tokens a step

    python scripts/train_reference_models.py --out experiments/assets                 # everything
    python scripts/train_reference_models.py --out /tmp/x --steps 50 --only target    # a trial

`--only medusa` and `--only eagle` make draft heads of OUT/reference-target: see `reference_heads.py`.
The baseline to beat is an interpolated Kneser-Ney 5-gram model of the same training tokens, printed first.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from reference_corpus import BOS, EOS, VOCAB_SIZE, encode, kneser_ney_nats, read_corpus, train_tokenizer, write_texts
from torch import Tensor, nn

MAX_POSITIONS = 2048
SHORT_CONTEXT = 512
SHORT_CONTEXT_FRACTION = 0.9


@dataclass(frozen=True, kw_only=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


SHAPES = {
    "target": Shape(hidden_size=256, intermediate_size=704, num_layers=6, num_heads=8, num_kv_heads=4),
    "draft": Shape(hidden_size=128, intermediate_size=352, num_layers=2, num_heads=4, num_kv_heads=2),
}


# ---- the model, with the parameter names of Hugging Face's Llama


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    half = x_BHTD.shape[-1] // 2
    x1, x2 = x_BHTD[..., :half], x_BHTD[..., half:]
    return x_BHTD * cos_TD + torch.cat((-x2, x1), dim=-1) * sin_TD


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden_size, s.num_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, _ = x_BTC.shape
        q = self.q_proj(x_BTC).view(B, T, -1, self.s.head_dim).transpose(1, 2)
        k = self.k_proj(x_BTC).view(B, T, -1, self.s.head_dim).transpose(1, 2)
        v = self.v_proj(x_BTC).view(B, T, -1, self.s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.s.num_heads // self.s.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(s)
        self.mlp = MLP(s)
        self.input_layernorm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_layers))
        self.norm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        for layer in self.layers:
            for p in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.num_layers))
        frequency = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angle = torch.outer(torch.arange(MAX_POSITIONS), torch.cat((frequency, frequency)))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids_BT: Tensor) -> list[Tensor]:
        """Residual stream after each layer: one [B, T, hidden] a layer."""
        T = ids_BT.shape[1]
        x = self.embed_tokens(ids_BT)
        states = []
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
            states.append(x)
        return states

    def nats(self, state: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross entropy of one exit through the shared norm and tied head."""
        logits = F.linear(self.norm(state), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())


# ---- optimizer


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by five Newton-Schulz steps (Jordan et al. 2024, github.com/KellerJordan/Muon)."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                update = orthogonalize(update) * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        xx = x @ x.T
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x.T if g.shape[0] > g.shape[1] else x


# ---- training


@torch.no_grad()
def held_out_nats(model: Llama, documents: list[np.ndarray], device: str, max_tokens: int) -> list[float]:
    """Nats a token by exit, documents cut into windows of SHORT_CONTEXT, the first `max_tokens` tokens."""
    sums, count = [0.0] * len(model.layers), 0
    for document in documents:
        for start in range(0, len(document) - 1, SHORT_CONTEXT):
            window = torch.from_numpy(document[start : start + SHORT_CONTEXT + 1]).to(device)[None]
            states = model(window[:, :-1])
            for i, state in enumerate(states):
                sums[i] += float(model.nats(state, window[:, 1:])) * (window.shape[1] - 1)
            count += window.shape[1] - 1
            if count >= max_tokens:
                return [s / count for s in sums]
    return [s / count for s in sums]


def batches(tokens: Tensor, tokens_per_step: int, bos: int, generator: torch.Generator):
    """Yield (inputs, targets) forever; the caller sends the context length. Half of the windows open with bos, as a
    prompt cut from the middle of a file does."""
    context = yield
    while True:
        rows = tokens_per_step // context
        at = torch.randint(len(tokens) - context - 1, (rows,), generator=generator)
        window = torch.stack([tokens[i : i + context + 1] for i in at.tolist()])
        opened = torch.rand(rows, generator=generator) < 0.5
        window[opened, 0] = bos
        context = yield window[:, :-1].contiguous(), window[:, 1:].contiguous()


def train(name: str, args, tokens: np.ndarray, held_out: list[np.ndarray], bos: int, out: Path) -> tuple[Llama, dict]:
    device = args.device
    torch.manual_seed(args.seed)
    model = Llama(SHAPES[name]).to(device)
    if args.resume:
        model.load_state_dict(torch.load(args.resume, map_location=device))
    num_layers = len(model.layers)
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.muon_lr)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    exit_weight = args.exit_weight if num_layers > 2 else 0.0

    # The trunk is one graph a context length, the head one that all exits share: compiling takes minutes, not more.
    trunk = torch.compile(model, dynamic=False) if args.compile else model
    nats = torch.compile(model.nats, dynamic=False) if args.compile else model.nats
    stream = torch.from_numpy(tokens)
    source = batches(stream, args.tokens_per_step, bos, torch.Generator().manual_seed(args.seed + 1 + args.start_step))
    next(source)
    log: list[dict] = []
    started = time.perf_counter()
    for step in range(args.start_step, args.steps):
        context = SHORT_CONTEXT if step < SHORT_CONTEXT_FRACTION * args.steps else MAX_POSITIONS
        inputs, targets = source.send(context)
        warm_up = min(1.0, (step + 1) / (0.03 * args.steps + 1))
        scale = warm_up * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        muon.param_groups[0]["lr"] = args.muon_lr * scale
        adam.param_groups[0]["lr"] = args.adam_lr * scale
        states, targets = trunk(inputs.to(device)), targets.to(device)
        loss = final = nats(states[-1], targets)
        if exit_weight > 0:
            loss = final + exit_weight * nats(states[step % (num_layers - 1)], targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        if step % args.log_every == 0 and step > args.start_step or step == args.steps - 1:
            by_exit = held_out_nats(model, held_out, device, max_tokens=20_000)
            elapsed = time.perf_counter() - started
            record = {
                "step": step + 1,
                "tokens": (step + 1) * args.tokens_per_step,
                "elapsed_s": round(elapsed, 1),
                "learning_rate_scale": round(scale, 5),
                "train_nats": round(float(final.detach()), 4),
                "held_out_nats_by_exit": [round(x, 4) for x in by_exit],
            }
            log.append(record)
            print(json.dumps({"model": name, **record}), flush=True)
            (out / f"{name}_loss.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
            torch.save(model.state_dict(), out / f"{name}.partial.pt")
    return model, {"elapsed_s": round(time.perf_counter() - started, 1), "log": log}


# ---- export


def export(model: Llama, shape: Shape, tokenizer, folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        dtype=dtype,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    state = {f"model.{k}": v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def continuations(folder: Path, held_out: dict[str, str], max_new_tokens: int = 72) -> list[dict[str, str]]:
    """Greedy text of the exported model after a `def` line of some held-out files, through transformers: what a
    stranger would get."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    examples = []
    for path, text in list(held_out.items())[3::6]:
        lines = text.splitlines(keepends=True)
        defs = [i for i in range(len(lines) // 3, len(lines)) if lines[i].lstrip().startswith("def ")]
        if not defs:
            continue
        prompt = "".join(lines[max(0, defs[0] - 12) : defs[0] + 1])
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        examples.append({"file": path, "prompt": prompt, "continuation": text})
    return examples


def main() -> int:
    import reference_heads  # it imports this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, tokenizer, text and logs")
    parser.add_argument("--only", choices=(*SHAPES, "medusa", "eagle"), help="make one (a draft's tokenizer too)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--resume", type=Path, help="weights to go on from, with --start-step; optimizer state is new")
    parser.add_argument("--start-step", type=int, default=0)
    parser.add_argument("--draft-steps", type=int, default=1600)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--exit-weight", type=float, default=0.3)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-only", action="store_true", help="write held-out and calibration text, train nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    reference_heads.add_arguments(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    train_files, held_out_files = read_corpus()
    write_texts(args.out, train_files, held_out_files)
    if args.text_only or args.only in ("medusa", "eagle"):
        return 0 if args.text_only else reference_heads.make(args, train_files, held_out_files)
    tokenizer = train_tokenizer(list(train_files.values()))
    documents = encode(tokenizer, list(train_files.values()))
    held_out = encode(tokenizer, list(held_out_files.values()))
    tokens = np.random.default_rng(args.seed).permutation(len(documents))
    tokens = np.concatenate([documents[i] for i in tokens])
    num_held_out = sum(len(d) for d in held_out)
    print(f"train: {len(documents)} files, {len(tokens):,} tokens; held out: {len(held_out)} files, {num_held_out:,}")
    baseline = kneser_ney_nats(tokens, held_out)
    print(f"Kneser-Ney 5-gram: {baseline:.4f} nats a held-out token", flush=True)

    for name in (args.only,) if args.only else tuple(SHAPES):
        if name == "draft":
            args.steps, args.start_step, args.resume = args.draft_steps, 0, None
        model, report = train(name, args, tokens, held_out, tokenizer.token_to_id(BOS), args.out)
        folder = args.out / f"reference-{name}"
        export(model.float(), SHAPES[name], tokenizer, folder, torch.float16)
        final = held_out_nats(model, held_out, args.device, max_tokens=10**9)
        card = {
            "command": "python " + " ".join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "shape": asdict(SHAPES[name]),
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "train_tokens_available": len(tokens),
            "train_tokens_seen": args.steps * args.tokens_per_step,
            "elapsed_s": report["elapsed_s"],
            "held_out_tokens": num_held_out,
            "held_out_nats_by_exit": [round(x, 4) for x in final],
            "kneser_ney_5gram_nats": round(baseline, 4),
            "greedy": continuations(folder, held_out_files),
        }
        (folder / "training.json").write_text(json.dumps(card, indent=2) + "\n")
        (args.out / f"{name}_loss.jsonl").replace(folder / "loss.jsonl")
        (args.out / f"{name}.partial.pt").unlink()
        by_exit = card["held_out_nats_by_exit"]
        print(f"{name}: held-out {final[-1]:.4f} nats a token (5-gram {baseline:.4f}), by exit {by_exit}")
        if final[-1] >= baseline:
            print(f"{name}: does not beat the 5-gram baseline", file=sys.stderr)
            if name == "target":
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
