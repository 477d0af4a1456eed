"""Networks by code of the user's own: run where the user names it, and never because a file does."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import neural_polarizer
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import KEY, ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import Definition, network_named
from neural_polarizer.models.normalize import described, picked
from neural_polarizer.models.preact_resnet import PreActResNet18

CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("was_run").touch()
WIDTH = 4

class Net(nn.Sequential):
    def __init__(self, num_classes, width=WIDTH, act="relu"):
        acts = {"relu": nn.ReLU, "elu": nn.ELU}
        super().__init__(
            nn.Conv2d(3, width, 3), acts[act](), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
        )

def fixed():
    return Net(5)

def by_keywords(**options):
    return Net(**options)

def text():
    return "no network"

class Several(Net):
    kind = "tuple"

    def forward(self, pixels):
        maps = self[1](self[0](pixels))
        logits = super().forward(pixels)
        if self.kind == "dict":
            return {"maps": maps, "scores": logits}
        return Given(logits, maps) if self.kind == "object" else (maps, logits)

class Given:
    def __init__(self, logits, maps):
        self.logits, self.maps = logits, maps

def several(num_classes, kind):
    net = Several(num_classes)
    net.kind = kind
    return net

def broken(num_classes):
    raise RuntimeError("no luck\\ntoday")

class Stateful(Net):
    def get_extra_state(self):
        return {"steps": 3}

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def leaving(num_classes):
    raise SystemExit(2)

class TwoHeads(Net):
    def __init__(self):
        super().__init__(5)
        self.spare = nn.Linear(4, 9)

    def forward(self, pixels):
        return nn.Sequential(*list(self)[:5])(pixels)

class Picky(TwoHeads):
    def forward(self, pixels):
        if pixels.shape[-1] != 8:
            raise ValueError("not 8 pixels")
        return super().forward(pixels)

class Unkind(Net):
    def forward(self, pixels):
        return {"scores": super().forward(pixels)}["logits"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    before = list(sys.path)
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    yield path
    sys.path[:] = before
    for name in [each for each in sys.modules if each.startswith("nets")]:
        del sys.modules[name]


def defined(text: str) -> Definition:
    found = network_named(text)
    assert isinstance(found, Definition)
    return found


def weights(path: Path, definition: Definition, num_classes: int = 5) -> Path:
    torch.save(definition.build(num_classes).state_dict(), path)
    return path


def test_a_class_with_arguments(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Net?width=6&act=elu")
    assert (net.name, net.sha256) == ("nets.py:Net?width=6&act=elu", sha256_of_file(file))
    loaded = load_model(weights(tmp_path / "m.pt", net, 7), architecture=net)
    assert (loaded.record.num_classes, loaded.record.architecture) == (7, net.name)
    assert loaded.record.definition == net.sha256
    assert any(net.name in remark and net.sha256 in remark for remark in loaded.findings)
    assert isinstance(next(each for each in loaded.model.modules() if isinstance(each, nn.ELU)), nn.ELU)


def test_the_number_of_classes_is_passed_where_it_is_taken(file: Path, tmp_path: Path) -> None:
    for name, taken in (("Net", True), ("by_keywords", True), ("fixed", False)):
        net = defined(f"{file}:{name}")
        assert net.takes_num_classes is taken
        path = weights(tmp_path / f"{name}.pt", net)
        assert load_model(path, architecture=net).record.num_classes == 5
    assert not defined(f"{file}:Net?num_classes=5").takes_num_classes


@pytest.mark.parametrize("called", ["n_classes", "nb_classes", "num_class", "num_labels"])
@pytest.mark.parametrize("form", ["{}", "{}=10, **other", "*, {}"])
def test_the_number_of_classes_goes_by_several_names(tmp_path: Path, called: str, form: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        f"from torch import nn\n\ndef make({form.format(called)}):\n"
        f"    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, {called}))\n"
    )
    net = defined(f"{file}:make")
    assert load_model(weights(tmp_path / "m.pt", net, 7), architecture=net).record.num_classes == 7
    assert not defined(f"{file}:make?{called}=7").takes_num_classes


def test_the_same_code_in_another_folder_is_that_folders(file: Path, tmp_path: Path) -> None:
    network_named(f"{file}:Net")
    (tmp_path / "other").mkdir()
    other = file.rename(tmp_path / "other" / file.name)  # the first one is no longer there
    assert defined(f"{other}:Net").sha256 == sha256_of_file(other)


def test_a_module_by_its_dotted_name(file: Path, tmp_path: Path) -> None:
    sys.path.append(str(file.parent))
    net = defined("nets:Net")
    assert load_model(weights(tmp_path / "m.pt", net), architecture=net).record.architecture == "nets:Net"
    assert defined("torch.nn:Linear").name == "torch.nn:Linear"


def test_building_leaves_the_random_numbers_alone(file: Path) -> None:
    net, before = defined(f"{file}:Net"), torch.get_rng_state()
    net.build(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text", ["preactresnet18", "torchvision:resnet18?stem=3", "timm:x", "transformers:X", None])
def test_other_names_stay_names(text: str | None) -> None:
    assert network_named(text) == text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", r"has no 'Missing'; it defines Net, fixed, by_keywords, text, Several"),
        ("WIDTH", "WIDTH is no class or function"),
        ("Net?width", "'width' is no argument; expected KEY=VALUE"),
        ("Net?width=1&width=2", "each key once"),
    ],
)
def test_what_is_not_there_is_told(file: Path, name: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        network_named(f"{file}:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "gives a str, not a torch.nn.Module"),
        ("broken", "RuntimeError: no luck today"),
        ("leaving", "SystemExit: 2"),
        ("lazy", "has lazy layers, whose sizes are known only once an image has gone through"),
        ("Stateful", r"the model's Stateful has a state that is no tensor \(get_extra_state\)"),
        ("Net?depth=3", "TypeError: .*unexpected keyword argument 'depth'"),
    ],
)
def test_code_that_gives_no_network_is_told(file: Path, name: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        defined(f"{file}:{name}").build(3)
    assert str(caught.value).isprintable()


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_module_anywhere")
    (tmp_path / "worse.py").write_text("def f(:")
    with pytest.raises(BadInputError, match=r"bad\.py cannot be imported \(ModuleNotFoundError"):
        network_named(f"{tmp_path}/bad.py:f")
    with pytest.raises(BadInputError, match=r"worse\.py cannot be imported \(SyntaxError"):
        network_named(f"{tmp_path}/worse.py:f")
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no-such-option'])")
    with pytest.raises(BadInputError, match=r"\(SystemExit: 2\); put what a script does under if __name__ == "):
        network_named(f"{tmp_path}/script.py:f")
    with pytest.raises(BadInputError, match=r"gone\.py: no such file"):
        network_named(f"{tmp_path}/gone.py:f")
    with pytest.raises(BadInputError, match=r"no_such\.module cannot be imported"):
        network_named("no_such.module:f")


def test_our_file_of_such_a_network_says_how_it_is_loaded(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Net")
    loaded = load_model(weights(tmp_path / "m.pt", net), architecture=net)
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    with pytest.raises(BadInputError, match=r"nets\.py:Net \(SHA-256 .*never run unless you name it: give --arch"):
        load_model(tmp_path / "ours.safetensors")
    with pytest.raises(BadInputError, match="never run unless you name it"):
        load_model(tmp_path / "ours.safetensors", architecture=f"{file}:Net")  # a text is only a name
    again = neural_polarizer.load(tmp_path / "ours.safetensors", arch=f"{file}:Net")
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(pixels), loaded.model(pixels))


def test_other_code_than_the_record_has_is_remarked(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Net")
    loaded = load_model(weights(tmp_path / "m.pt", net), architecture=net)
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    (tmp_path / "other.py").write_text(CODE + "\n# changed\n")
    found = load_model(tmp_path / "ours.safetensors", architecture=defined(f"{tmp_path}/other.py:Net"))
    assert any(f"not the nets.py:Net of SHA-256 {net.sha256}" in remark for remark in found.findings)


@pytest.mark.parametrize("definition", [None, "0" * 64])
def test_a_record_never_leads_to_code(file: Path, tmp_path: Path, definition: str | None) -> None:
    record = ModelRecord(architecture=f"{file}:Net", num_classes=5, definition=definition)
    told = {**{name: getattr(record, name) for name in record.__dataclass_fields__}}
    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors", metadata={KEY: json.dumps(told)})
    with pytest.raises(BadInputError):
        load_model(tmp_path / "m.safetensors")
    with pytest.raises(BadInputError):
        load_model(tmp_path / "m.safetensors", architecture=f"{file}:Net")
    assert not (tmp_path / "was_run").exists()


def test_code_for_a_file_that_names_its_network_is_refused(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Net")
    loaded = load_model(weights(tmp_path / "m.pt", net), architecture=net)
    plain = ModelRecord(architecture="preactresnet18", num_classes=5)
    save_model(tmp_path / "ours.safetensors", loaded.model, plain)
    with pytest.raises(BadInputError, match=r"is a preactresnet18, not a nets\.py:Net; leave --arch out"):
        load_model(tmp_path / "ours.safetensors", architecture=net)


@pytest.mark.parametrize(("kind", "output"), [("tuple", "1"), ("dict", "scores"), ("object", "logits")])
def test_the_output_that_is_meant_is_named(file: Path, tmp_path: Path, kind: str, output: str) -> None:
    net = defined(f"{file}:several?kind={kind}")
    path = weights(tmp_path / "m.pt", net)
    with pytest.raises(BadInputError, match=rf"{output} \(2 x 5\).*--output KEY_OR_INDEX, as --output {output}"):
        check_takes(load_model(path, architecture=net), (8, 8))
    loaded = load_model(path, architecture=net, output=output)
    check_takes(loaded, (8, 8))
    assert f"of what the network gives, {output} is taken for the logits" in loaded.findings
    with pytest.raises(BadInputError, match="gives no output 'x'; it gives a "):
        load_model(path, architecture=net, output="x").model(torch.rand(1, 3, 8, 8))
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    again = load_model(tmp_path / "ours.safetensors", architecture=net)
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(again.model(pixels), loaded.model(pixels))
    with pytest.raises(BadInputError, match="says itself what goes in and out"):
        load_model(tmp_path / "ours.safetensors", architecture=net, output="other")


class Fields(NamedTuple):
    logits: torch.Tensor
    maps: torch.Tensor


def test_outputs_go_by_their_fields_and_from_the_end() -> None:
    given = Fields(torch.ones(1), torch.zeros(1))
    assert described(given) == "a Fields of logits (1), maps (1)"
    assert picked(given, "logits") is picked(given, "0") is picked(given, "-2") is given.logits
    assert picked([given.logits, given.maps], "-1") is given.maps
    for key in ("2", "-3", "_fields"):
        with pytest.raises(BadInputError, match=f"gives no output '{key}'; it gives a Fields of logits"):
            picked(given, key)


def test_whatever_the_code_raises_at_an_image_is_told_in_one_line(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Unkind")
    with pytest.raises(BadInputError, match=r"cannot take images of 8x8 pixels \(KeyError: 'logits'\); give --size"):
        check_takes(load_model(weights(tmp_path / "m.pt", net), architecture=net), (8, 8))


def test_the_answer_tells_the_number_of_classes_where_the_last_layer_is_not_the_head(
    file: Path, tmp_path: Path
) -> None:
    net = defined(f"{file}:TwoHeads")
    loaded = load_model(weights(tmp_path / "m.pt", net), architecture=net)
    assert loaded.record.num_classes == 5
    neural_polarizer.save(net.build(5), tmp_path / "saved.safetensors")
    assert load_model(tmp_path / "saved.safetensors", architecture=net).record.num_classes == 5


def test_the_user_knows_the_number_of_classes_where_the_network_does_not_tell(file: Path, tmp_path: Path) -> None:
    net = defined(f"{file}:Picky")
    path = weights(tmp_path / "m.pt", net)
    with pytest.raises(BadInputError, match="gives no 9 logits for an image, but 2 x 5 for two; give --num-classes 5"):
        check_takes(load_model(path, architecture=net), (8, 8))
    loaded = load_model(path, architecture=net, num_classes=5)
    check_takes(loaded, (8, 8))
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    check_takes(load_model(tmp_path / "ours.safetensors", architecture=net), (8, 8))  # our record knows it


def test_one_logit_stands_for_two_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = PreActResNet18(1, 2).eval()
    torch.save(net.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", architecture="preactresnet18", profile="none")
    pixels = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), torch.cat((torch.zeros(2, 1), net(pixels)), dim=1))
    assert loaded.record.num_classes == 2
    assert "a yes/no model: its one logit z stands for the two logits (0, z)" in loaded.findings
    with pytest.raises(BadInputError, match="has 1 classes, not 3"):
        load_model(tmp_path / "m.pt", architecture="preactresnet18", num_classes=3)


@pytest.mark.parametrize("told", [None, 1])  # the first convolution tells
def test_a_network_of_one_channel_gets_the_mean_of_three(tmp_path: Path, told: int | None) -> None:
    torch.manual_seed(0)
    net = PreActResNet18(3, 2).eval()
    net.conv1 = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    torch.save(net.state_dict(), tmp_path / "m.pt")
    path = tmp_path / "m.pt"
    loaded = load_model(path, architecture="preactresnet18", profile="0.5/0.25", channels=told)
    assert loaded.record.grey
    assert "the network takes one channel: it gets the mean of the three" in loaded.findings
    grey = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(grey.expand(2, 3, 8, 8)), net((grey - 0.5) / 0.25))
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    with torch.no_grad():
        again = load_model(tmp_path / "ours.safetensors").model
        torch.testing.assert_close(again(grey.expand(2, 3, 8, 8)), loaded.model(grey.expand(2, 3, 8, 8)))


def test_a_network_without_convolutions_is_told_how_many_channels_it_gets(tmp_path: Path) -> None:
    code = (
        "from torch.nn import *\n\ndef flat(num_classes):\n    return Sequential(Flatten(), Linear(64, num_classes))\n"
    )
    (tmp_path / "nets_flat.py").write_text(code)
    net = defined(f"{tmp_path / 'nets_flat.py'}:flat")
    path = weights(tmp_path / "m.pt", net)
    with pytest.raises(BadInputError, match="give --channels 1, as it takes one channel"):
        check_takes(load_model(path, architecture=net), (8, 8))
    check_takes(load_model(path, architecture=net, channels=1), (8, 8))
    model = neural_polarizer.load(path, arch=f"{tmp_path / 'nets_flat.py'}:flat", channels=1)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(BadInputError, match="images have 1 or 3 channels, not 4"):
        neural_polarizer.load(path, arch=f"{tmp_path / 'nets_flat.py'}:flat", channels=4)


def test_python_names_the_logits_too(file: Path, tmp_path: Path) -> None:
    path = weights(tmp_path / "m.pt", defined(f"{file}:several?kind=tuple"))
    model = neural_polarizer.load(path, arch=f"{file}:several?kind=tuple", output=1)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
