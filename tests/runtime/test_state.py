"""States of experts: everything comes back, to the bit; and what is not a state of this expert changes nothing."""

from __future__ import annotations

import copy
import json
import struct

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import CheckpointError
from hivemind_p2p.runtime import ExpertState
from hivemind_p2p.runtime.state import _plain
from tests.runtime.modules import backend_of, ffn, same, weights_of

SCHEDULERS = {
    "none": None,
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=50),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
    "in sequence": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.ConstantLR(optimizer),
            torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3),
        ],
        [2],
    ),
}


class Normalized(nn.Sequential):
    """With buffers, one of them whole numbers; a parameter without elements; and tied weights."""

    def __init__(self) -> None:
        super().__init__(ffn(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
        self[3].weight = self[2].weight
        self.empty = nn.Parameter(torch.zeros(0))
        self.register_buffer("mask", torch.full((2,), float("-inf")))


def expert(optimizer_class=torch.optim.Adam, scheduler="lambda", module=None, **options):
    module = Normalized() if module is None else module
    optimizer = None if optimizer_class is None else optimizer_class(module.parameters(), lr=0.01, **options)
    make = SCHEDULERS[scheduler] if optimizer is not None else None
    return backend_of(module, "ffn.0", 8, optimizer=optimizer, scheduler=make and make(optimizer))


def train(backend, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        backend.backward(torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator))
    return backend


def through_bytes(state):
    return ExpertState.from_bytes(state.to_bytes("ffn.0"), "ffn.0")


def through_a_file(state, tmp_path):
    state.write(tmp_path / "state", "ffn.0")
    return ExpertState.read(tmp_path / "state", "ffn.0")


@pytest.mark.parametrize(
    ("optimizer_class", "options", "scheduler"),
    [
        (torch.optim.Adam, {}, "none"),
        (torch.optim.Adam, {}, "lambda"),
        (torch.optim.Adam, {"amsgrad": True}, "one cycle"),
        (torch.optim.SGD, {"momentum": 0.9}, "in sequence"),
        (torch.optim.Adagrad, {}, "cosine"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")  # SequentialLR's own
def test_an_expert_goes_on_as_if_nothing_had_happened(optimizer_class, options, scheduler, tmp_path):
    original = train(expert(optimizer_class, scheduler, **options))
    state = ExpertState.of(original)
    restored = [train(expert(optimizer_class, scheduler, **options), seed=i) for i in (1, 2)]
    through_bytes(state).restore(restored[0])
    through_a_file(state, tmp_path).restore(restored[1])
    train(original, seed=7)
    for each in restored:
        train(each, seed=7)
        assert same(each.module.state_dict().values(), original.module.state_dict().values())
        assert each.optimizer.param_groups[0]["lr"] == original.optimizer.param_groups[0]["lr"]
        assert (each.update_count, each.examples_processed) == (6, 24)


def accumulating(module=None):
    module = ffn() if module is None else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return backend_of(module, "ffn.0", 8, optimizer=optimizer, gradient_accumulation_steps=3)


def test_gradients_that_wait_for_more_come_back():
    original, restored, without = accumulating(), train(accumulating(), 1), accumulating()
    train(original, 2)
    through_bytes(ExpertState.of(original)).restore(restored)
    ExpertState.of(original, accumulated=False).restore(without)
    for each in (original, restored, without):
        train(each, 1, seed=5)
    assert same(restored.module.parameters(), original.module.parameters())
    assert (restored.update_count, restored.examples_processed) == (1, 12)
    assert without.update_count == 0
    frozen = backend_of(ffn(), "ffn.0", 8)
    ExpertState.of(train(accumulating(), 1)).restore(frozen)
    assert not frozen.training.accumulated.batches


@pytest.mark.parametrize(
    "bad", [{7: torch.ones(2)}, {0: torch.ones(2)}, {0: torch.full((32, 8), float("inf"))}, [], {0: 1}]
)
def test_accumulated_gradients_of_something_else_change_nothing(bad):
    state, backend = ExpertState.of(train(accumulating(), 1)), accumulating()
    waiting = {"batches": 1, "rows": 4, "gradients": bad}
    tampered = ExpertState(dict(state.tensors), dict(state.tree))
    tampered.tree["accumulated"] = _plain(waiting, "accumulated", tampered.tensors)
    before = weights_of(backend.module)
    with pytest.raises(CheckpointError, match="not those of this expert's weights"):
        tampered.restore(backend)
    assert same(backend.module.parameters(), before)


def test_a_state_is_a_copy():
    backend = train(expert())
    state, before = ExpertState.of(backend), copy.deepcopy(backend.module.state_dict())
    train(backend)
    state.restore(backend)
    train(backend)
    state.restore(backend)
    assert same(backend.module.state_dict().values(), before.values())
    assert state.update_count == 3


def test_without_an_optimizer_only_the_weights_are_taken():
    backend, frozen = train(expert()), expert(None)
    ExpertState.of(backend).restore(frozen)
    assert same(frozen.module.state_dict().values(), backend.module.state_dict().values())
    assert frozen.update_count == 3


def test_another_learning_rate_is_told(caplog):
    state = ExpertState.of(expert(scheduler="none"))
    other = expert(scheduler="none")
    other.optimizer.param_groups[0]["lr"] = 0.5
    state.restore(other)
    assert "goes on with the learning rate [0.01] that was saved, not with [0.5]" in caplog.text
    assert other.optimizer.param_groups[0]["lr"] == 0.01


def half_poisoned():
    backend = expert()
    backend.module[2].bias.data[3] = float("nan")
    return backend


class Broken(torch.optim.Adam):
    """What it remembers does not fit."""

    def step(self):
        super().step()
        for remembered in self.state.values():
            remembered["exp_avg"] = torch.zeros(5, 5)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: expert(module=ffn()), r"the module that it is of is another one .* they differ in \['0\.0\.bias'"),
        (lambda: expert(module=nn.Sequential(ffn())), r"they differ in \['1\.bias', '1\.num_batches_tracked'"),
        (lambda: expert(torch.optim.SGD), r"optimizer's groups of parameters .*'amsgrad'"),
        (lambda: expert(None), "it has no optimizer"),
        (lambda: expert(scheduler="none"), "it has no scheduler, but the expert has one"),
        (lambda: expert(scheduler="cosine"), "the scheduler that it is of"),
        (half_poisoned, r"2\.bias has NaN or infinity"),
        (lambda: train(expert(Broken), 1), "exp_avg of the optimizer does not have the shape of its weight"),
    ],
)
def test_the_state_of_something_else_changes_nothing(make, why):
    backend = train(expert())
    before = ExpertState.of(backend)
    with pytest.raises(CheckpointError, match=why):
        ExpertState.of(make()).restore(backend)
    after = ExpertState.of(backend)
    assert after.tree == before.tree
    assert same(after.tensors.values(), before.tensors.values())


def test_another_shape_is_named():
    state = ExpertState.of(backend_of(nn.Linear(2, 3), optimizer=None))
    with pytest.raises(CheckpointError, match=r"weight of the module has shape \[4, 2\], and \[3, 2\] in it"):
        state.restore(backend_of(nn.Linear(2, 4), optimizer=None))


def test_what_is_no_data_cannot_be_saved():
    backend = expert()
    backend.optimizer.param_groups[0]["hook"] = print
    with pytest.raises(CheckpointError, match=r"optimizer\.param_groups\.0\.hook is a builtin_function_or_method"):
        ExpertState.of(backend)


def with_header(change):
    """A state's bytes with another header, the rest as it was."""
    data = ExpertState.of(expert()).to_bytes("ffn.0")
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_every_damage_is_noticed():
    data = ExpertState.of(train(expert())).to_bytes("ffn.0")
    for cut in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(CheckpointError):
            ExpertState.from_bytes(data[:cut], "ffn.0")
    for place in [0, 8, 20, *range(100, len(data), len(data) // 200)]:
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        with pytest.raises(CheckpointError):
            ExpertState.from_bytes(bytes(damaged), "ffn.0")
    with pytest.raises(CheckpointError, match=r"state of 'ffn\.0', not of 'ffn\.1'"):
        ExpertState.from_bytes(data, "ffn.1")
    with pytest.raises(CheckpointError, match="not the state of an expert"):
        ExpertState.from_bytes(with_header(lambda header: header.pop("__metadata__")), "ffn.0")
    with pytest.raises(CheckpointError, match="checksum"):
        ExpertState.from_bytes(with_header(lambda header: header["__metadata__"].pop("tree")), "ffn.0")


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"counts": {}},
        {"counts": {"update_count": -1, "examples_processed": 0, "exploded_steps": 0}},
        {"counts": {"update_count": "1", "examples_processed": 0, "exploded_steps": 0}},
        {"counts": {"update_count": 2**63, "examples_processed": 0, "exploded_steps": 0}},
    ],
)
def test_a_structure_that_is_none_is_refused(tree):
    with pytest.raises(CheckpointError, match="its structure cannot be read"):
        through_bytes(ExpertState({}, tree))


@pytest.mark.parametrize(
    "module", [{"tensor": "absent"}, {"dict": [["a"]]}, {"dict": [[[], 1]]}, {"code": "x"}, 5, {"list": 3}]
)
def test_a_module_that_is_none_is_refused(module):
    backend = expert()
    before = weights_of(backend.module)
    state = ExpertState.of(backend)
    with pytest.raises(CheckpointError):
        through_bytes(ExpertState(state.tensors, state.tree | {"module": module})).restore(backend)
    assert same(backend.module.parameters(), before)
