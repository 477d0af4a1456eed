"""Weights go into a module whole and checked, or not at all."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoint_files import same, small_net
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import load_strict


def _other() -> dict[str, Tensor]:
    return {
        name: value + 1 if value.is_floating_point() else value.clone()
        for name, value in small_net().state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_copied_in_the_modules_own_dtype(dtype: torch.dtype) -> None:
    module, tensors = small_net(), _other()
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    load_strict(module, rounded, source="m.pt")
    assert same(module.state_dict(), {name: value.to(tensors[name].dtype) for name, value in rounded.items()})


@pytest.mark.parametrize("count", [torch.tensor(2.5), torch.tensor([7]), torch.tensor(float("nan"))])
def test_a_count_of_batches_in_another_form_is_left_out(count: Tensor) -> None:
    module, tensors = small_net(), _other()
    load_strict(module, tensors | {"1.num_batches_tracked": count}, source="averaged.pt")
    assert module.get_buffer("1.num_batches_tracked") == 0
    assert torch.equal(module.get_parameter("3.bias"), tensors["3.bias"])


def test_the_count_of_batches_may_be_missing_and_hidden_buffers_stay() -> None:
    module, tensors = small_net(), _other()
    module.register_buffer("hidden", torch.full((2,), 7.0), persistent=False)
    del tensors["1.num_batches_tracked"]
    load_strict(module, tensors, source="m.pt")
    assert module.get_buffer("hidden").tolist() == [7.0, 7.0]
    assert module.get_buffer("1.num_batches_tracked") == 0
    assert torch.equal(module.get_parameter("3.bias"), tensors["3.bias"])


def _spoil(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


def _set(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.double().index_fill(0, torch.tensor([1]), value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensors: tensors.pop("3.bias"), r"^m\.pt: .*: 1 missing: 3\.bias; check the architecture"),
        (lambda tensors: tensors.update(x=torch.ones(1)), "1 unexpected: x;"),
        (_spoil("3.bias", lambda t: t[:2]), r"1 wrong shape: 3\.bias is \(2,\), expected \(3,\)"),
        (
            _spoil("3.bias", Tensor.char),
            r"1 wrong type: 3\.bias is int8, expected float32; give the weights in",
        ),
        (_spoil("3.bias", Tensor.bool), "is bool, expected float32"),
        (_spoil("3.bias", lambda t: t.to(torch.complex64)), "is complex64, expected float32"),
        (_spoil("3.bias", Tensor.to_sparse), r"is float32 \(sparse_coo\), expected float32"),
        (_spoil("3.bias", lambda t: t.to("meta")), "is float32 without data, expected float32"),
        (_spoil("3.bias", _set(float("nan"))), r"unusable values: 3\.bias holds NaN or infinite values"),
        (_spoil("1.running_var", _set(float("inf"))), r"1\.running_var holds NaN or infinite"),
        (_spoil("3.bias", _set(1e300)), "holds NaN or infinite"),
        (_spoil("1.running_var", _set(-1e-3)), r"1\.running_var holds negative variances"),
        (lambda tensors: tensors.update({"\x1b[31m\nx": torch.ones(1)}), r"1 unexpected: \\x1b\[31m\\nx;"),
        (
            lambda tensors: tensors.update({f"k{i}": torch.ones(1) for i in range(25)}),
            "25 unexpected: k0, k1, .*, k9 and 15 more;",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    spoil: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    module, tensors = small_net(), _other()
    before = copy.deepcopy(module.state_dict())
    spoil(tensors)
    with pytest.raises(BadInputError, match=message) as caught:
        load_strict(module, tensors, source="m.pt")
    assert str(caught.value).isprintable()
    assert same(module.state_dict(), before)


def test_all_problems_come_at_once() -> None:
    tensors = _other()
    tensors["extra"] = tensors.pop("3.bias")
    with pytest.raises(BadInputError, match=r"1 missing: 3\.bias; 1 unexpected: extra"):
        load_strict(small_net(), tensors, source="m.pt")


def test_an_integer_that_does_not_fit_is_refused() -> None:
    module = nn.Module()
    module.register_buffer("count", torch.zeros(1, dtype=torch.int8))
    with pytest.raises(BadInputError, match=r"count does not fit torch\.int8"):
        load_strict(module, {"count": torch.tensor([300])}, source="m.pt")


def test_large_but_finite_weights_are_the_users_business() -> None:
    module = nn.Linear(1, 1)
    load_strict(module, {"weight": torch.tensor([[1e38]]), "bias": torch.zeros(1)}, source="m.pt")
    assert module.weight.item() == pytest.approx(1e38)
