"""Draft heads of the reference target: Medusa's heads and EAGLE's layer, trained on what the frozen target says.

Both read the target's features (its final hidden state after the final norm, what the tied head multiplies) and its
embedding, and both predict through the target's own head, so that a file holds only what is small:

    medusa   x = f_{n-1} + W_e e_n, where n is the newest token, whose feature nobody has computed yet; head i has
             residual blocks x + SiLU(W x + b) and a matrix, and predicts token n+i (arXiv 2401.10774, section 2;
             W_e is ours, and so is the matrix before the tied head where Medusa has a whole head)
    eagle    position t sees (e_t, f_{t-1}) through `fc` and one Llama layer, and predicts f_t; later drafts put the
             prediction in the place of the feature (arXiv 2401.15077, section 4). Trained unrolled, exactly as it
             drafts: at draft j the keys of the last j positions are those of the draft steps (arXiv 2503.01840)

The label is the target's distribution. The text is pieces of training files and what the target itself goes on with,
about half and half: acceptance is measured on the latter. Both start from a regression of features in closed form: it
is worth more than the first minutes of gradients.

    python scripts/train_reference_models.py --out OUT --only medusa      # OUT/reference-target is there already

Shapes: B rows, T tokens a row, C hidden size, V entries of the vocabulary, J drafts.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from reference_corpus import VOCAB_SIZE, continued_pieces, encode, held_out_rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_reference_models import SHAPES, Layer, Llama, Muon, rotate

NUM_DRAFTS = 4
CONTEXT = 512
# Of each later draft's loss: it counts only where all before it were right.
DISCOUNT = 0.8
# A step's loss is computed over about so many tokens of the vocabulary: the head is most of the work.
NUM_CANDIDATES = 1024
# Held-out prompts, and how far the target goes on with each.
PROMPT_TOKENS, NEW_TOKENS = 128, 64


def add_arguments(parser) -> None:
    parser.add_argument("--num-blocks", type=int, default=1, help="residual blocks of a Medusa head")
    parser.add_argument("--own-rows", type=int, default=1200, help="rows of 512 tokens to train on")
    parser.add_argument("--own-text", type=Path, help="a .npz file that keeps them for another run")


# ---- the heads


class DraftHead(nn.Module):
    """What both have: an embedding that is scaled up while they are trained; `embedding_weight` is what it meets.

    Rows of the tied embedding are some twenty times smaller than features, and a step of Muon is as large in every
    direction of a matrix: what looks at embeddings would stand still.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding_scale = 1.0

    @torch.no_grad()
    def scale_embedding(self, scale: float) -> None:
        """Scale what comes in, and its matrix the other way: nothing changes but the training."""
        self.embedding_weight().mul_(self.embedding_scale / scale)
        self.embedding_scale = scale

    def states(self, target: Llama, ids_BT: Tensor, features_BTC: Tensor) -> list[Tensor]:
        """J hidden states [B, T - j, C], j from 0: at newest token t, state j predicts token t + 1 + j."""
        embedded = target.embed_tokens(ids_BT) * self.embedding_scale
        return self(embedded, F.pad(features_BTC[:, :-1], (0, 0, 1, 0)))


class ResBlock(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class MedusaHeads(DraftHead):
    """Residual blocks, and one matrix in the place of an own head: logits = tied head(P_i x_i)."""

    def __init__(self, hidden_size: int, num_blocks: int) -> None:
        super().__init__()
        self.embed_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.heads = nn.ModuleList()
        for _ in range(NUM_DRAFTS):
            blocks = [ResBlock(hidden_size) for _ in range(num_blocks)]
            self.heads.append(nn.Sequential(*blocks, nn.Linear(hidden_size, hidden_size, bias=False)))

    def forward(self, embedded_BTC: Tensor, previous_BTC: Tensor) -> list[Tensor]:
        """See `states`; [B, T, C] each."""
        x = previous_BTC + self.embed_proj(embedded_BTC)
        return [head(x[:, : x.shape[1] - j]) for j, head in enumerate(self.heads)]

    def embedding_weight(self) -> Tensor:
        return self.embed_proj.weight

    @torch.no_grad()
    def regress(self, target: Llama, ids_BT: Tensor, features_BTC: Tensor) -> None:
        """Start from the best linear prediction of the features: f_n from (f_{n-1}, e_n), the others from that."""
        embedded, previous = target.embed_tokens(ids_BT), F.pad(features_BTC[:, :-1], (0, 0, 1, 0))
        of_feature, of_embedding = least_squares(torch.cat((previous, embedded), -1), features_BTC).chunk(2, dim=1)
        # Damped: a direction that no head would look at need not be met.
        square = of_feature.T @ of_feature + 0.01 * torch.eye(len(of_feature))
        self.embed_proj.weight.copy_(torch.linalg.solve(square, of_feature.T @ of_embedding))
        x = previous + self.embed_proj(embedded)
        for j, head in enumerate(self.heads):
            head[-1].weight.copy_(least_squares(x[:, : x.shape[1] - j], features_BTC[:, j:]))


class EagleHead(DraftHead):
    """One Llama layer whose input is `fc` of (embedding, feature of the token before)."""

    def __init__(self, target: Llama) -> None:
        super().__init__()
        shape = SHAPES["target"]
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.layers = nn.ModuleList([Layer(shape)])
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        # The target's last layer is the nearest thing to what is wanted.
        self.layers[0].load_state_dict(target.layers[-1].state_dict())
        self.norm.load_state_dict(target.norm.state_dict())
        self.register_buffer("cos", target.cos, persistent=False)
        self.register_buffer("sin", target.sin, persistent=False)

    def forward(self, embedded_BTC: Tensor, previous_BTC: Tensor) -> list[Tensor]:
        """See `states`; [B, T, C] each. Draft j + 1 is computed at every position u at once, for the chain whose newest
        token is at u - j: it sees the first step's keys up to there, then one key of each later step."""
        B, T, _ = embedded_BTC.shape
        layer, a = self.layers[0], self.layers[0].self_attn
        group = a.s.num_heads // a.s.num_kv_heads
        cos, sin = self.cos[:T], self.sin[:T]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        states = []
        for j in range(NUM_DRAFTS):
            x = self.fc(torch.cat((embedded_BTC, previous_BTC), dim=-1))
            h = layer.input_layernorm(x)
            q, k, v = (p(h).view(B, T, -1, a.s.head_dim).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys.append(k.repeat_interleave(group, dim=1))
            values.append(v.repeat_interleave(group, dim=1))
            o = chain_attention(q, keys, values)
            x = x + a.o_proj(o.transpose(1, 2).reshape(B, T, -1))
            x = self.norm(x + layer.mlp(layer.post_attention_layernorm(x)))
            states.append(x[:, j:])
            previous_BTC = F.pad(x[:, :-1], (0, 0, 1, 0))
        return states

    def embedding_weight(self) -> Tensor:
        return self.fc.weight[:, : self.fc.out_features]

    @torch.no_grad()
    def regress(self, target: Llama, ids_BT: Tensor, features_BTC: Tensor) -> None:
        """Start from the best linear prediction of what the target's last layer gets."""
        given = torch.cat((target.embed_tokens(ids_BT), F.pad(features_BTC[:, :-1], (0, 0, 1, 0))), -1)
        self.fc.weight.copy_(least_squares(given, torch.cat([target(rows)[-2] for rows in ids_BT.split(4)])))


def least_squares(x: Tensor, y: Tensor, damping: float = 1e-4) -> Tensor:
    """W [Y, X] of the linear map from the last axis of x to that of y, a little damped."""
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    square = x.T @ x
    square.diagonal().add_(damping * square.diagonal().mean())
    return torch.linalg.solve(square, x.T @ y).T


def chain_attention(q_BHTD: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of draft step j = len(keys) - 1: the query at position u sees keys[0] at [0, u - j], and keys[i] at
    u - j + i for each later step i."""
    j, T = len(keys) - 1, q_BHTD.shape[2]
    if j == 0:
        return F.scaled_dot_product_attention(q_BHTD, keys[0], values[0], is_causal=True)
    scale = q_BHTD.shape[-1] ** -0.5
    seen = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril(-j)
    scores = [(q_BHTD * scale @ keys[0].transpose(2, 3)).masked_fill(~seen, -torch.inf)]
    shifted = [[F.pad(x[i][:, :, : T - j + i], (0, 0, j - i, 0)) for i in range(1, j + 1)] for x in (keys, values)]
    scores += [(q_BHTD * k).sum(-1, keepdim=True) * scale for k in shifted[0]]
    p = torch.cat(scores, dim=-1).softmax(dim=-1)
    o = p[..., :T] @ values[0]
    for i, v in enumerate(shifted[1]):
        o = o + p[..., T + i, None] * v
    return o


@torch.no_grad()
def features(target: Llama, ids_BT: Tensor) -> Tensor:
    return target.norm(target(ids_BT)[-1])


def load_target(folder: Path) -> Llama:
    target = Llama(SHAPES["target"])
    state = load_file(folder / "model.safetensors")
    target.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
    return target.requires_grad_(False).eval()


def training_text(args, target: Llama, folder: Path, tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """`ids` [N, CONTEXT] int64, their `features` [N, CONTEXT, C] float16, and `order` [V] int64, the tokens of the
    texts by descending frequency."""
    if args.own_text and args.own_text.exists():
        return dict(np.load(args.own_text))
    tokens = np.concatenate(encode(tokenizer, texts))
    ids = continued_pieces(folder, tokens, args.own_rows, CONTEXT, args.seed)
    found = {
        "ids": ids,
        "features": torch.cat([features(target, rows).half() for rows in torch.from_numpy(ids).split(4)]).numpy(),
        "order": np.argsort(-np.bincount(tokens, minlength=VOCAB_SIZE), kind="stable"),
    }
    if args.own_text:
        np.savez(args.own_text, **found)
    return found


def batches(text: dict[str, np.ndarray], num_rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their features, `num_rows` at a time, in a new order each epoch, forever."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(text["ids"]))
        for i in range(0, len(order) - num_rows + 1, num_rows):
            chosen = order[i : i + num_rows]
            yield torch.from_numpy(text["ids"][chosen]), torch.from_numpy(text["features"][chosen]).float()


# ---- measuring


@torch.no_grad()
def drafts(head: DraftHead, target: Llama, ids_BT: Tensor, places: slice) -> tuple[list[Tensor], Tensor]:
    """Likeliest tokens of the drafts, J of [B, places] (token t + 1 + j), and of the target, [B, T] (token t + 1)."""
    f = features(target, ids_BT)
    best = [F.linear(s[:, places], target.embed_tokens.weight).argmax(-1) for s in head.states(target, ids_BT, f)]
    return best, F.linear(f, target.embed_tokens.weight).argmax(-1)


def acceptance(hits_BTJ: np.ndarray) -> dict:
    """How much of a text would have been drafted.

    Args:
        hits_BTJ: bool; draft j at newest token t is the text's own token.

    Returns:
        `chain`: fraction of places where drafts 1 to j all hit, by j; `tokens_per_step`: accepted drafts plus one,
        of a walk through each row that goes on behind what was accepted.
    """
    lengths = np.cumprod(hits_BTJ, axis=-1).sum(-1)
    chain = [float((lengths > j).mean()) for j in range(hits_BTJ.shape[-1])]
    num_steps = num_tokens = 0
    for row in lengths:
        t = 0
        while t < len(row):
            num_steps, num_tokens, t = num_steps + 1, num_tokens + row[t] + 1, t + row[t] + 1
    return {"chain": [round(c, 4) for c in chain], "tokens_per_step": round(float(num_tokens / num_steps), 3)}


def measure(head: DraftHead, target: Llama, rows: dict[str, Tensor]) -> dict:
    """Agreement with the target's argmax on held-out text, by draft, and acceptance on the target's own text."""
    figures = {}
    for name, ids_NT in rows.items():
        places = slice(0 if name == "text" else PROMPT_TOKENS, ids_NT.shape[1] - NUM_DRAFTS)
        found = []
        for ids in ids_NT.split(8):
            best, truth = drafts(head, target, ids, places)
            wanted = truth if name == "text" else ids[:, 1:]
            found.append(torch.stack([b == wanted[:, j:][:, places] for j, b in enumerate(best)], dim=-1))
        hits = torch.cat(found).numpy()
        by_draft = hits.mean((0, 1)).round(4).tolist()
        figures[name] = {"agreement": by_draft} if name == "text" else acceptance(hits)
    return figures


# ---- training


def candidates(ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens to compute a loss over, [N], and the logarithm of how many tokens of the vocabulary each stands for: those
    of the rows for themselves, a sample of the others for all others."""
    own = ids_BT.unique()
    others = torch.ones(VOCAB_SIZE, dtype=torch.bool).index_fill(0, own, False).nonzero()[:, 0]
    sample = others[torch.randperm(len(others))[: max(VOCAB_SIZE // 16, NUM_CANDIDATES - len(own))]]
    log_count = torch.full((len(sample),), math.log(len(others) / len(sample)))
    return torch.cat((own, sample)), torch.cat((torch.zeros(len(own)), log_count))


def loss_of(head: DraftHead, target: Llama, ids_BT: Tensor, features_BTC: Tensor) -> tuple[Tensor, list[float]]:
    """Cross entropy against the target's distribution, drafts discounted, and the plain figures by draft (nats)."""
    tokens, log_count = candidates(ids_BT)
    weight = target.embed_tokens.weight[tokens]
    label = F.linear(features_BTC, weight, log_count).softmax(-1)
    total, by_draft = torch.zeros(()), []
    for j, state in enumerate(head.states(target, ids_BT, features_BTC)):
        nats = F.cross_entropy(F.linear(state, weight, log_count).flatten(0, 1), label[:, j:].flatten(0, 1))
        total = total + DISCOUNT**j * nats
        by_draft.append(float(nats.detach()))
    return total, by_draft


def train(head: DraftHead, target: Llama, source: Iterator[tuple[Tensor, Tensor]], args, report) -> float:
    """Train in place; `report(record)` every `args.log_every` steps. Returns seconds."""
    matrices = [p for p in head.parameters() if p.ndim == 2]
    others = [p for p in head.parameters() if p.ndim != 2]
    optimizers = [Muon(matrices, lr=args.muon_lr), torch.optim.AdamW(others, lr=args.adam_lr, weight_decay=0.0)]
    started = time.perf_counter()
    for step in range(args.steps):
        warm_up = min(1.0, (step + 1) / (0.03 * args.steps + 1))
        scale = warm_up * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for optimizer, lr in zip(optimizers, (args.muon_lr, args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * scale
            optimizer.zero_grad()
        loss, by_draft = loss_of(head, target, *next(source))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
            elapsed_s, nats = round(time.perf_counter() - started, 1), [round(x, 4) for x in by_draft]
            report({"step": step + 1, "elapsed_s": elapsed_s, "train_nats_by_draft": nats})
    return time.perf_counter() - started


def export(head: DraftHead, kind: str, target_folder: Path, folder: Path, order: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((target_folder / "model.safetensors").read_bytes()).hexdigest()
    config = json.loads((target_folder / "config.json").read_text())
    if kind == "eagle":
        config |= {"architectures": ["EagleHead"], "num_hidden_layers": 1, "target_sha256": digest}
    else:
        config = {
            "architectures": ["MedusaHeads"],
            "num_heads": NUM_DRAFTS,
            "num_blocks": len(head.heads[0]) - 1,
            "head_proj": True,
            "hidden_size": config["hidden_size"],
            "vocab_size": config["vocab_size"],
            "target_sha256": digest,
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.detach().half().contiguous() for k, v in head.state_dict().items()}
    state["token_order"] = torch.from_numpy(order)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def make(args, train_files: dict[str, str], held_out_files: dict[str, str]) -> int:
    """Train `args.only` for `args.out`/reference-target, and write its folder beside it."""
    from tokenizers import Tokenizer

    torch.manual_seed(args.seed)
    target_folder, folder = args.out / "reference-target", args.out / f"reference-{args.only}"
    tokenizer = Tokenizer.from_file(str(target_folder / "tokenizer.json"))
    target = load_target(target_folder)
    text = training_text(args, target, target_folder, tokenizer, list(train_files.values()))
    rows = held_out_rows(target_folder, tokenizer, list(held_out_files.values()), CONTEXT, PROMPT_TOKENS, NEW_TOKENS)
    held_out = {name: torch.from_numpy(ids) for name, ids in rows.items()}
    head = EagleHead(target) if args.only == "eagle" else MedusaHeads(target.norm.weight.numel(), args.num_blocks)
    if args.resume:
        state = load_file(args.resume)
        head.load_state_dict({k: v.float() for k, v in state.items() if k != "token_order"})
    else:
        head.regress(target, torch.from_numpy(text["ids"][:128]), torch.from_numpy(text["features"][:128]).float())
    head.scale_embedding(1 / float(target.embed_tokens.weight.std()))

    log: list[dict] = []

    def report(record: dict) -> None:
        log.append({**record, **measure(head, target, {name: rows[:16] for name, rows in held_out.items()})})
        print(json.dumps({"model": args.only, **log[-1]}), flush=True)

    num_rows = min(len(text["ids"]), max(1, args.tokens_per_step // CONTEXT))
    elapsed = train(head, target, batches(text, num_rows, args.seed), args, report)
    head.scale_embedding(1.0)
    head.load_state_dict({k: v.half().float() for k, v in head.state_dict().items()})
    export(head, args.only, target_folder, folder, text["order"])
    card = {
        "command": "python " + " ".join(sys.argv),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "num_parameters": sum(p.numel() for p in head.parameters()),
        "steps": args.steps,
        "train_tokens_seen": args.steps * num_rows * CONTEXT,
        "own_text_tokens": int(text["ids"].size),
        "elapsed_s": round(elapsed, 1),
        **measure(head, target, held_out),
    }
    (folder / "training.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "loss.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    return 0
