import pytest
import timm
import torch
from model_folders import make_network

from crt.errors import UserError
from crt.models.build import BaseClassifier, Normalize, build_model
from crt.models.small_images import last_map
from crt.spec import ImageSpec

TINY_CONVNEXT = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)}
TINY_RESNET = {"channels": (8, 16, 16, 16), "layers": (1, 1, 1, 1)}


def make(arch="resnet18", args=TINY_RESNET, channels=3, size=32) -> BaseClassifier:
    return make_network(arch, ImageSpec.numbered(10, size, channels), **args)


def strides(model) -> list[int]:
    return [m.stride[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.stride[0] > 1]


def test_normalization_is_the_first_layer_and_in_buffers():
    model = make()
    assert next(iter(model._modules)) == "normalize"
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())
    assert not list(model.normalize.parameters())
    images = torch.rand(2, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(model(images), model.network((images - 0.5) / 0.2))


def test_pixels_pass_unchanged_unless_told():
    torch.manual_seed(0)
    model = build_model("cifar_resnet20", ImageSpec(("a", "b"), 8, 1)).eval()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), model.network(images))


def test_normalize_by_hand():
    out = Normalize([0.5, 0.25], [0.5, 0.125])(torch.tensor([[[[1.0]], [[0.5]]]]))
    assert out.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("resnet18", TINY_RESNET),
        ("resnet50d", {"channels": (8, 16, 16, 16), "layers": (1, 1, 1, 1)}),
        ("convnext_atto", TINY_CONVNEXT),
        ("regnetx_002", {}),
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("mobilenetv3_small_100", {}),
    ],
)
@pytest.mark.parametrize(("size", "channels", "least"), [(8, 1, 2), (28, 1, 3), (32, 3, 3), (64, 3, 3)])
def test_fits_small_images(arch, args, size, channels, least):
    model = make(arch, args, channels, size)
    images = torch.rand(2, channels, size, size)
    model(images).square().sum().backward()
    assert model.training
    assert all(parameter.grad is not None for parameter in model.parameters())
    side = last_map(model.network, images[:1])
    assert least <= side <= size // 2


def test_at_32_pixels_a_resnet_has_the_form_that_people_write_by_hand():
    network = make().network
    assert network.conv1.stride == (1, 1)
    assert isinstance(network.maxpool, torch.nn.Identity)
    assert len(strides(network)) == 6  # three stages, each with a convolution and a shortcut
    assert last_map(network, torch.zeros(1, 3, 32, 32)) == 4


def test_regnet_at_32_pixels_keeps_the_strides_of_its_last_three_stages():
    network = make("regnetx_002", {}).network
    assert network.stem.conv.stride == (1, 1)
    assert network.s1.b1.conv2.conv.stride == (1, 1)
    assert network.s1.b1.downsample.conv.stride == (1, 1)
    assert network.s2.b1.conv2.conv.stride == (2, 2)


def test_patches_that_do_not_overlap_keep_their_kernels():
    network = make("convnext_atto", TINY_CONVNEXT).network
    assert network.stem[0].stride == (1, 1)
    assert network.stem[0].kernel_size == (4, 4)
    assert network.stem[0](torch.zeros(1, 3, 32, 32)).shape[-1] == 32


def test_a_vit_gets_smaller_patches():
    assert make("vit_tiny_patch16_224", {"depth": 1}).network.patch_embed.patch_size == (4, 4)
    given = make("vit_tiny_patch16_224", {"depth": 1, "patch_size": 8}).network
    assert given.patch_embed.patch_size == (8, 8)


def test_at_224_pixels_networks_are_timms_own():
    torch.manual_seed(0)
    own = timm.create_model("resnet18", num_classes=10, **TINY_RESNET).eval()
    network = make(size=224).network.eval()
    network.load_state_dict(own.state_dict())
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(network(images), own(images))


def test_building_leaves_batchnorm_as_it_was():
    norm = make().network.bn1
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_the_same_seed_builds_the_same_weights():
    one, other = make().state_dict(), make().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arch", "args", "size", "said"),
    [
        ("resnett18", {}, 32, r"no timm model.*did you mean.*resnet18"),
        ("zzzzzzzzzz", {}, 32, "list_models"),
        ("resnet18", {"widht": 3}, 32, r"arch_args do not fit resnet18.*widht"),
        ("resnet18", {"num_classes": 3}, 32, "may not set num_classes"),
        ("resnet18", {"pretrained": True}, 32, "may not set pretrained"),
        ("levit_128s", {}, 8, "cannot work on images of 8 pixels"),
    ],
)
def test_what_cannot_be_built_ends_in_one_sentence(arch, args, size, said):
    with pytest.raises(UserError, match=said) as error:
        make(arch, args, size=size)
    assert "\n" not in str(error.value)
