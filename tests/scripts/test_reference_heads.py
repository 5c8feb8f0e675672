"""The shipped draft heads, and the script that trains them: what is in the files, and that they draft."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import reference_heads as heads  # noqa: E402

ASSETS = ROOT / "experiments" / "assets"
KINDS = ("medusa", "eagle")


@pytest.fixture(scope="module")
def target():
    return heads.load_target(ASSETS / "reference-target")


@pytest.fixture(scope="module")
def held_out_ids():
    """[3, 96], the beginnings of held-out files."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ASSETS / "reference-target" / "tokenizer.json"))
    with open(ASSETS / "heldout.jsonl", encoding="utf-8") as f:
        texts = [json.loads(next(f))["text"] for _ in range(3)]
    return torch.tensor([e.ids[:96] for e in tokenizer.encode_batch(texts)])


def _make_head(kind: str, target, num_blocks: int = 1) -> nn.Module:
    return heads.EagleHead(target) if kind == "eagle" else heads.MedusaHeads(256, num_blocks)


def _load_shipped(kind: str, target) -> nn.Module:
    folder = ASSETS / f"reference-{kind}"
    head = _make_head(kind, target, json.loads((folder / "config.json").read_text()).get("num_blocks", 1))
    state = load_file(folder / "model.safetensors")
    head.load_state_dict({k: v.float() for k, v in state.items() if k != "token_order"})
    return head


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_head_belongs_to_the_shipped_target(kind):
    target_folder = ASSETS / "reference-target"
    config = json.loads((ASSETS / f"reference-{kind}" / "config.json").read_text())
    assert config["target_sha256"] == hashlib.sha256((target_folder / "model.safetensors").read_bytes()).hexdigest()
    target_config = json.loads((target_folder / "config.json").read_text())
    if kind == "eagle":
        own = {"architectures": ["EagleHead"], "num_hidden_layers": 1, "target_sha256": config["target_sha256"]}
        assert config == target_config | own
    else:
        assert config["architectures"] == ["MedusaHeads"]
        assert config["num_heads"] == heads.NUM_DRAFTS
        assert config["hidden_size"] == target_config["hidden_size"]
        assert config["vocab_size"] == target_config["vocab_size"]


def _expected_shapes(kind: str) -> dict[str, list[int]]:
    if kind == "medusa":
        config = json.loads((ASSETS / "reference-medusa" / "config.json").read_text())
        shapes = {"embed_proj.weight": [256, 256]}
        for i in range(config["num_heads"]):
            shapes[f"heads.{i}.{config['num_blocks']}.weight"] = [256, 256]
            for j in range(config["num_blocks"]):
                shapes |= {f"heads.{i}.{j}.linear.weight": [256, 256], f"heads.{i}.{j}.linear.bias": [256]}
        return shapes
    return {
        "fc.weight": [256, 512],
        "layers.0.self_attn.q_proj.weight": [256, 256],
        "layers.0.self_attn.k_proj.weight": [128, 256],
        "layers.0.self_attn.v_proj.weight": [128, 256],
        "layers.0.self_attn.o_proj.weight": [256, 256],
        "layers.0.mlp.gate_proj.weight": [704, 256],
        "layers.0.mlp.up_proj.weight": [704, 256],
        "layers.0.mlp.down_proj.weight": [256, 704],
        "layers.0.input_layernorm.weight": [256],
        "layers.0.post_attention_layernorm.weight": [256],
        "norm.weight": [256],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_file_holds_half_precision_tensors_of_the_agreed_names_and_the_order_of_all_tokens(kind):
    state = load_file(ASSETS / f"reference-{kind}" / "model.safetensors")
    order = state.pop("token_order")
    assert {k: list(v.shape) for k, v in state.items()} == _expected_shapes(kind)
    assert all(v.dtype == torch.float16 and v.isfinite().all() for v in state.values())
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(4096))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_head_drafts_better_than_chance_at_every_position(kind, target, held_out_ids):
    head = _load_shipped(kind, target)
    places = slice(0, held_out_ids.shape[1] - heads.NUM_DRAFTS)
    best, truth = heads.drafts(head, target, held_out_ids, places)
    assert len(best) == heads.NUM_DRAFTS
    for j, b in enumerate(best):
        wanted = truth[:, j:][:, places]
        chance = wanted.flatten().bincount().max() / wanted.numel()
        assert (b == wanted).float().mean() > 1.5 * chance, f"draft {j + 1}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_tokens_follows_their_frequency(kind, held_out_ids):
    order = load_file(ASSETS / f"reference-{kind}" / "model.safetensors")["token_order"]
    rank = order.argsort()
    # A uniform order would put half of the text into the first half.
    assert (rank[held_out_ids] < 1024).float().mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_of_training_lower_the_loss_and_leave_the_target_alone(kind, target, held_out_ids):
    torch.manual_seed(0)
    before = [p.clone() for p in target.parameters()]
    ids = held_out_ids[:2, :40]
    text = {"ids": ids.numpy(), "features": heads.features(target, ids).numpy()}
    head = _make_head(kind, target)
    args = SimpleNamespace(only=kind, steps=3, muon_lr=0.02, adam_lr=2e-3, log_every=1, feature_weight=0.0)
    records: list[dict] = []
    heads.train(head, target, heads.batches(text, 2, seed=0), args, records.append)
    assert [r["step"] for r in records] == list(range(1, 4))
    first, last = records[0]["train_nats_by_draft"], records[-1]["train_nats_by_draft"]
    assert all(b < 0.95 * a for a, b in zip(first, last, strict=True)), (first, last)
    assert all(a.equal(b) for a, b in zip(before, target.parameters(), strict=True))


@torch.no_grad()
def _chain(head: heads.EagleHead, target, ids_T: torch.Tensor, newest: int) -> list[torch.Tensor]:
    """The drafts at one newest token, one pass over the whole sequence a draft: states [C] by draft."""
    f = heads.features(target, ids_T[None])[0]
    previous = [torch.zeros(256), *f[:newest]]
    states = []
    for j in range(heads.NUM_DRAFTS):
        embedded = target.embed_tokens(ids_T[: newest + j + 1])
        x = head.fc(torch.cat((embedded, torch.stack(previous)), dim=-1))[None]
        T = x.shape[1]
        states.append(head.norm(head.layers[0](x, head.cos[:T], head.sin[:T]))[0, -1])
        previous.append(states[-1])
    return states


@pytest.mark.parametrize("newest", [0, 1, 6, 13])
def test_eagle_is_trained_on_what_a_chain_of_drafts_computes(newest, target, held_out_ids):
    torch.manual_seed(1)
    head = _make_head("eagle", target)
    ids = held_out_ids[0, 10:27]
    with torch.no_grad():
        found = head.states(target, ids[None], heads.features(target, ids[None]))
    for j, expected in enumerate(_chain(head, target, ids, newest)):
        torch.testing.assert_close(found[j][0, newest], expected, rtol=1e-4, atol=1e-4)


def test_medusa_sees_the_newest_token_and_no_feature_of_it(target, held_out_ids):
    torch.manual_seed(1)
    head = _make_head("medusa", target, num_blocks=2)
    ids = held_out_ids[:1, :11]
    f = heads.features(target, ids)
    changed = f.clone()
    changed[:, 7] += 1
    plain, other = (head.states(target, ids, x) for x in (f, changed))
    for j, (a, b) in enumerate(zip(plain, other, strict=True)):
        moved = (a != b).any(-1)[0]
        assert moved.nonzero()[:, 0].tolist() == ([8] if len(moved) > 8 else []), f"draft {j + 1}"
    another = ids.clone()
    another[0, 7] += 1
    assert all((a != b).any(-1)[0, 7] for a, b in zip(plain, head.states(target, another, f), strict=True))


def test_the_candidates_of_a_loss_stand_for_the_whole_vocabulary(held_out_ids):
    tokens, log_count = heads.candidates(held_out_ids)
    assert len(tokens.unique()) == len(tokens)
    assert set(held_out_ids.flatten().tolist()) <= set(tokens[log_count == 0].tolist())
    assert float(log_count.exp().sum()) == pytest.approx(4096, rel=1e-5)


def test_acceptance_counts_places_where_all_drafts_so_far_hit_and_walks_behind_what_was_accepted():
    hits = np.array([[[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]], dtype=bool)
    # Accepted 2, 1, 0 and 3: the walk stands at the first and the last place, and gets 3 and 4 tokens.
    assert heads.acceptance(hits) == {"chain": [0.75, 0.5, 0.25], "tokens_per_step": 3.5}
