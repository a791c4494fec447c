"""Convolutional fields and networks against torch's own layers, and the sizes the papers give."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from fields import wild
from torch import nn
from torch.nn import functional as F

from anode import Augment, ConvField, InputError, NormConvField, ODEBlock, Pixels, Solver, classifier
from anode.odenet import Downsample, pooled_head, stem
from cnf.divergence import exact_by_pullbacks
from train_flows import classify, recipes
from train_flows.paper.scale import Scale, matched_filters, parameters


def count(shape, **options):
    return sum(p.numel() for p in classifier(shape, 10, **options).parameters())


def with_time(x, t):
    return torch.cat([x, t * torch.ones_like(x[:, :1])], 1)


class TestConvField:
    def test_concatenated_time_is_a_channel_of_every_convolution(self, float64):
        field = ConvField(3, filters=5, time="concat")
        convs = [nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 3, 1)]
        for mine, theirs in zip(field.layers, convs, strict=True):
            theirs.weight.data = torch.cat([mine.weight, mine.time], 1).detach()
            theirs.bias.data = mine.bias.data
        x, t = torch.randn(4, 3, 6, 7), torch.tensor(0.7)
        h = F.relu(convs[1](with_time(F.relu(convs[0](with_time(x, t))), t)))
        torch.testing.assert_close(field(t, x), convs[2](with_time(h, t)))
        assert count((3, 8, 8), field="conv", filters=5, time="concat") == sum(
            p.numel() for conv in convs for p in conv.parameters()
        ) + (3 * 64 * 10 + 10)

    def test_time_as_bias(self, float64):
        field = ConvField(3, filters=5, activation="tanh", time="bias")
        x, t = torch.randn(4, 3, 6, 7), torch.tensor(0.7)
        h = x
        for i, layer in enumerate(field.layers):
            h = F.conv2d(h, layer.weight, layer.bias + t * layer.time, padding=layer.padding)
            h = torch.tanh(h) if i < 2 else h
        torch.testing.assert_close(field(t, x), h)

    def test_without_time(self, float64):
        field = ConvField(2, filters=4, time="none")
        x = torch.randn(3, 2, 5, 5)
        torch.testing.assert_close(field(torch.tensor(0.1), x), field(torch.tensor(0.9), x))

    @pytest.mark.parametrize("time", ["none", "concat", "bias"])
    @pytest.mark.parametrize("make", [lambda time: ConvField(2, 4, time=time), lambda time: NormConvField(2, time)])
    def test_time_per_sample_is_the_same_as_one_by_one(self, float64, make, time):
        field = make(time)
        x, t = torch.randn(4, 2, 5, 5), torch.rand(4)
        alone = torch.cat([field(t[i], x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(field(t, x), alone)

    @pytest.mark.parametrize("time", ["none", "concat", "bias"])
    @pytest.mark.parametrize("activation", ["tanh", "softplus", "relu", "silu"])
    @pytest.mark.parametrize("context", [0, 2])
    def test_closed_form_divergence_is_the_trace_of_the_jacobian(self, float64, time, activation, context):
        field = wild(ConvField(2, 5, activation, time, context))
        x, c = torch.randn(4, 2, 3, 5), torch.randn(4, context) if context else None
        for t in (torch.tensor(0.3), torch.rand(4)):
            velocity, divergence = field.velocity_and_divergence(t, x, c)
            expected = exact_by_pullbacks(field, t, x, c)
            torch.testing.assert_close(velocity, expected.velocity)
            torch.testing.assert_close(divergence, expected.divergence)

    def test_context_is_added_to_every_pixel(self, float64):
        field = wild(ConvField(1, 4, "tanh", "none", context=3))
        x, c = torch.randn(5, 1, 3, 3), torch.randn(5, 3)
        h = x
        for i, layer in enumerate(field.layers):
            h = F.conv2d(h, layer.weight, layer.bias, padding=layer.padding) + (c @ layer.context.T)[..., None, None]
            h = torch.tanh(h) if i < 2 else h
        torch.testing.assert_close(field(torch.tensor(0.0), x, c), h)

    def test_zero_start(self):
        field = ConvField(2, 4, context=1, zero_init=True)
        assert not field(torch.tensor(0.5), torch.randn(3, 2, 4, 4), torch.randn(3, 1)).any()

    @pytest.mark.parametrize("gradient", ["direct", "adjoint"])
    def test_gradients_of_a_solve(self, float64, gradient):
        """Against finite differences, in a direction of the weights and of the input."""
        field = ConvField(2, filters=3, activation="tanh", time="concat")
        block = ODEBlock(field, Solver(rtol=1e-8, atol=1e-8, gradient=gradient))
        x = torch.randn(2, 2, 4, 4, requires_grad=True)
        values = [x, *field.parameters()]
        gradients = torch.autograd.grad(block(x).sin().sum(), values)
        directions = [torch.randn_like(value) for value in values]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

        @torch.no_grad()
        def at(step):
            for value, d in zip(values, directions, strict=True):
                value += step * d
            result = block(x).sin().sum()
            for value, d in zip(values, directions, strict=True):
                value -= step * d
            return result

        torch.testing.assert_close((at(1e-5) - at(-1e-5)) / 2e-5, slope, rtol=1e-5, atol=1e-6)

    def test_states_stay_in_float32_where_layers_are_in_bfloat16(self):
        block = ODEBlock(ConvField(2, filters=8))
        x = torch.rand(4, 2, 6, 6)
        exact = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = block(x)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
        assert not torch.equal(rounded, exact)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("options", [{"field": "conv"}, {"field": "norm-conv", "stem": "conv", "readout": "pool"}])
    def test_devices_agree(self, float64, options):
        model = classifier((1, 28, 28), 10, extra=2, filters=16, **options)
        x = torch.rand(8, 1, 28, 28)
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), model.cpu()(x))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: ConvField(0), "channels=0"),
            (lambda: ConvField(1, context=-1), "context=-1"),
            (lambda: ConvField(1, context=2)(torch.tensor(0.0), torch.randn(4, 1, 8, 8)), "c of shape None"),
            (lambda: ConvField(2, filters=0), "filters=0"),
            (lambda: ConvField(2, time="never"), "time='never' is unknown; choose one of none, concat, bias"),
            (lambda: ConvField(2, activation="sign"), "activation='sign'"),
            (lambda: ConvField(2)(torch.tensor(0.0), torch.randn(4, 3, 8, 8)), "(4, 3, 8, 8) does not fit"),
            (lambda: ConvField(2)(torch.tensor(0.0), torch.randn(4, 2)), "(4, 2) does not fit"),
            (lambda: ConvField(2)(torch.tensor(0.0), torch.randn(4, 2, 3, 3), torch.ones(4, 1)), "context=0"),
            (lambda: NormConvField(0), "channels=0"),
            (lambda: NormConvField(2)(torch.tensor(0.0), torch.randn(4, 3, 8, 8)), "does not fit"),
            (lambda: stem("pool", 1, 4), "stem='pool'"),
            (lambda: Pixels(1), "levels=1"),
        ],
    )
    def test_refuses(self, make, words):
        with pytest.raises(InputError) as refusal:
            make()
        assert words in str(refusal.value)


class TestChannels:
    def test_augmentation_appends_channels_of_zeros(self):
        x = torch.rand(3, 2, 4, 5)
        y = Augment(3)(x)
        assert torch.equal(y[:, :2], x)
        assert torch.equal(y[:, 2:], torch.zeros(3, 3, 4, 5))

    def test_a_model_of_pixels_is_that_of_their_shares(self):
        torch.manual_seed(1)
        whole = classifier((1, 4, 4), 3, field="conv", filters=4, extra=1, levels=256)
        torch.manual_seed(1)
        real = classifier((1, 4, 4), 3, field="conv", filters=4, extra=1)
        x = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        torch.testing.assert_close(whole(x), real(x / 255))

    def test_the_head_sees_every_pixel_of_every_channel(self):
        model = classifier((3, 32, 32), 10, field="conv", filters=4, extra=10)
        assert model.readout[1].weight.shape == (10, 13 * 32 * 32)


class TestSizes:
    """The papers' numbers of parameters."""

    @pytest.mark.parametrize(
        ("name", "shape", "node", "anode"),
        [
            ("mnist", (1, 28, 28), 84_395, 84_816),
            ("cifar10", (3, 32, 32), 172_358, 171_799),
            ("svhn", (3, 32, 32), 172_358, 171_799),
            ("imagenet64", (3, 64, 64), 366_269, 365_714),
        ],
    )
    def test_pairs_of_the_anode_paper(self, name, shape, node, anode):
        options = {"field": "conv", "time": "none"}
        pair = recipes.PAIRS[name]
        assert count(shape, **options, **pair["NODE"]) == node
        assert count(shape, **options, **pair["ANODE"]) == anode
        scale = Scale("full")
        assert [parameters(scale.shape(name), model) for model in scale.pair(name).values()] == [node, anode]
        assert matched_filters(shape, anode, options) == pair["NODE"]["filters"]

    def test_smaller_pairs_match_nearly(self):
        for size in ("full", "small"):
            scale = Scale(size)
            for data in ("mnist", "cifar10-jpeg", "svhn", "tiny-imagenet-200", "digits"):
                for filters in (16, 64):
                    node, anode = (parameters(scale.shape(data), m) for m in scale.pair(data, filters).values())
                    assert abs(node - anode) < 0.07 * anode

    def test_ode_net(self):
        """Those of the public code, whose six residual blocks lack the biases and the third norm."""
        shape = (1, 28, 28)
        assert count(shape, **recipes.ODENET) == 208_266
        assert count(shape, **{**recipes.ODENET, "stem": "residual"}) == 232_970
        resnet = {**recipes.ODENET, "model": "resnet", "blocks": 6}
        more = 6 * (2 * 64 + 2 * 64)
        assert count(shape, **resnet) == 576_778 + more
        assert count(shape, **{**resnet, "stem": "residual"}) == 601_482 + more  # 0.60M published
        assert count(shape, model="mlp", hidden=(300,)) == 238_510  # 0.24M published

    def test_the_readmes_ode_net(self):
        readme = (Path(__file__).parent.parent / "README.md").read_text()
        (options,) = re.findall(r"`(--field norm-conv .*?)` makes", readme)
        network = classify.parse(["mnist", *options.split()]).network
        assert count((1, 28, 28), **dataclasses.asdict(network)) == 208_266


class TestOdeNet:
    @pytest.mark.parametrize("kind", ["conv", "residual"])
    @pytest.mark.parametrize(("size", "small"), [(28, (6, 7)), (32, (7, 8)), (64, (15, 16))])
    def test_stems_quarter_the_map(self, kind, size, small):
        y = stem(kind, 3, 8)(torch.randn(2, 3, size, size))
        assert y.shape[:2] == (2, 8)
        assert y.shape[2] == y.shape[3]
        assert y.shape[3] in small

    def test_field(self, float64):
        field = NormConvField(4, time="concat")
        with torch.no_grad():
            for p in field.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x, t = torch.randn(3, 4, 5, 5), torch.tensor(0.3)
        h = x
        for i, conv in enumerate(field.convs):
            norm = field.norms[i]
            h = F.relu(F.group_norm(h, 4, norm.weight, norm.bias))
            h = F.conv2d(with_time(h, t), torch.cat([conv.weight, conv.time], 1), conv.bias, padding=1)
        norm = field.norms[2]
        torch.testing.assert_close(field(t, x), F.group_norm(h, 4, norm.weight, norm.bias))

    def test_downsampling_block(self, float64):
        block = Downsample(4)
        x = torch.randn(2, 4, 6, 6)
        h = F.relu(F.group_norm(x, 4))
        inner = F.relu(F.group_norm(F.conv2d(h, block.convs[0].weight, stride=2, padding=1), 4))
        expected = F.conv2d(h, block.skip.weight, stride=2) + F.conv2d(inner, block.convs[1].weight, padding=1)
        torch.testing.assert_close(block(x), expected)

    def test_the_head_is_of_means(self, float64):
        head = pooled_head(4, 3)
        x = torch.randn(2, 4, 5, 6)
        means = F.relu(F.group_norm(x, 4)).mean((2, 3))
        torch.testing.assert_close(head(x), F.linear(means, head[-1].weight, head[-1].bias))

    @pytest.mark.parametrize("channels", [64, 69, 6])
    def test_groups_divide_any_number_of_channels(self, channels):
        assert NormConvField(channels)(torch.tensor(0.0), torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"shape": (4,), "field": "conv"}, "images (C, H, W), not for shape=(4,)"),
            ({"shape": (4,), "stem": "conv"}, "images (C, H, W)"),
            ({"shape": (1, 8, 8), "readout": "pool"}, "averages over a map"),
            ({"shape": (1, 2, 2), "stem": "conv"}, "shape=(1, 2, 2) is too small"),
            ({"shape": (1, 8, 8), "stem": "conv"}, "shape=(1, 8, 8) is too small"),  # to one pixel, normalised to 0
            ({"shape": (1, 6, 6), "stem": "residual", "filters": 32}, "shape=(1, 6, 6) is too small"),
            ({"shape": (1, 8, 8), "model": "mlp", "stem": "conv"}, "model='mlp' has no maps"),
            ({"shape": (1, 8, 8), "model": "second-order", "extra": 1, "field": "conv"}, "has no maps"),
            ({"shape": (1, 8, 8), "field": "dense"}, "field='dense' is unknown; choose one of mlp, conv, norm-conv"),
            ({"shape": (1, 8, 8), "stem": "root"}, "stem='root' is unknown"),
            ({"shape": (1, 8, 8), "filters": 0, "field": "conv"}, "filters=0"),
            ({"shape": (1, 8, 8), "levels": 1}, "levels=1"),
        ],
    )
    def test_refuses(self, options, words):
        with pytest.raises(InputError) as refusal:
            classifier(outputs=3, **options)
        assert words in str(refusal.value)
