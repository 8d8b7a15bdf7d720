import inspect

import numpy as np
import paddle
import pytest

from paddle_vit import UserError, ViT, count_parameters, sincos_position_embedding_1d

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def test_default_is_the_lessons_model():
    model = ViT()
    assert model(paddle.randn([4, 3, 224, 224])).shape == [4, 10]
    assert [len(model.encoders), model.patch_embed.num_patches] == [5, 1024]
    assert all(hasattr(model, name) for name in ("patch_embed", "encoders", "norm", "avgpool", "head"))
    assert model.patch_embed.patch_embedding.weight.shape == [16, 3, 7, 7]
    assert model.position_embedding is None and model.class_token is None
    by_hand = 3 * 7 * 7 * 16 + 16 + 5 * (4 * 16 + 16 * 48 + 16 * 17 + 16 * 64 + 64 + 64 * 16 + 16) + 32 + 170
    assert count_parameters(model) == by_hand


def test_an_articles_model_of_257_tokens():
    D, L, K, patch = 128, 3, 10, 16
    model = ViT(
        image_size=256,
        patch_size=patch,
        num_classes=K,
        embed_dim=D,
        depth=L,
        num_heads=8,
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
    )
    x = paddle.randn([2, 3, 256, 256])
    assert model.patch_embed(x).shape == [2, 256, D]
    assert model.forward_features(x).shape == [2, 1 + 256, D]
    assert model.encoders[0].attn(paddle.randn([2, 257, D]))[1].shape == [2, 8, 257, 257]
    assert model(x).shape == [2, K]
    embedding = patch * patch * 3 * D + D + D + 257 * D  # 图块嵌入的权重和偏置,class token,位置编码
    layer = 2 * 2 * D + (D * 3 * D + 3 * D) + (D * D + D) + (D * 4 * D + 4 * D) + (4 * D * D + D)
    assert patch * patch * 3 == 768
    assert count_parameters(model) == embedding + L * layer + 2 * D + D * K + K


VARIANTS = [
    dict(),
    dict(pool="cls"),
    dict(position_embedding="learnable"),
    dict(position_embedding="sincos"),
    dict(position_embedding="sincos1d"),
    dict(pool="cls", position_embedding="learnable", qkv_bias=True, head="mlp"),
    dict(pool="cls", position_embedding="sincos", drop_path=0.2, dropout=0.1, attention_dropout=0.1),
    dict(image_size=(8, 12), patch_size=(4, 3), qk_scale=0.3, mlp_ratio=2.0),
    dict(class_token=True, position_embedding="learnable"),
    dict(pool="cls", distillation_token=True, position_embedding="learnable"),
    dict(pool="cls", distillation_token=True, register_tokens=3, norm_after_pool=True, head="mlp"),
    dict(register_tokens=2, norm_after_pool=True, position_embedding="sincos"),
    dict(layer_scale=1e-4, qk_norm=True, qkv_bias=True, epsilon=1e-3),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_every_parameter_receives_a_gradient(options):
    model = ViT(**{**SMALL, **options})
    H, W = model.patch_embed.image_size
    model(paddle.randn([16, 1, H, W])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad.numpy()
        if "qkv.bias" in name and not options.get("qk_norm"):  # 键的偏置对 softmax 只是加一个常数,梯度恒为零
            D = len(gradient) // 3
            gradient = np.concatenate([gradient[:D], gradient[2 * D :]])
        assert np.abs(gradient).max() > 0, name


ALL_TOKENS = dict(pool="cls", distillation_token=True, register_tokens=3)


def test_default_parameters_keep_their_names_and_shapes():
    names = {
        name: list(p.shape) for name, p in ViT(**SMALL, pool="cls", position_embedding="learnable").state_dict().items()
    }
    layer = {
        "attn_norm.weight": [8],
        "attn_norm.bias": [8],
        "attn.qkv.weight": [8, 24],
        "attn.proj.weight": [8, 8],
        "attn.proj.bias": [8],
        "mlp_norm.weight": [8],
        "mlp_norm.bias": [8],
        "mlp.fc1.weight": [8, 32],
        "mlp.fc1.bias": [32],
        "mlp.fc2.weight": [32, 8],
        "mlp.fc2.bias": [8],
    }
    expected = {
        "class_token": [1, 1, 8],
        "position_embedding": [1, 5, 8],
        "patch_embed.patch_embedding.weight": [8, 1, 4, 4],
        "patch_embed.patch_embedding.bias": [8],
        **{f"encoders.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        "norm.weight": [8],
        "norm.bias": [8],
        "head.weight": [8, 3],
        "head.bias": [3],
    }
    assert names == expected


def test_options_add_these_parameters():
    plain = set(ViT(**SMALL, pool="cls").state_dict())
    options = dict(distillation_token=True, register_tokens=3, norm_after_pool=True, layer_scale=0.1, qk_norm=True)
    model = ViT(**SMALL, pool="cls", **options)
    state = {name: list(value.shape) for name, value in model.state_dict().items()}
    blocks = ["attn.q_norm.weight", "attn.q_norm.bias", "attn.k_norm.weight", "attn.k_norm.bias"]
    added = {f"encoders.{i}.{name}": [4] for i in range(2) for name in blocks}
    added.update({f"encoders.{i}.{name}.gamma": [8] for i in range(2) for name in ("attn_scale", "mlp_scale")})
    added.update({"distillation_token": [1, 1, 8], "register_tokens": [1, 3, 8]})
    added.update({"distillation_head.weight": [8, 3], "distillation_head.bias": [3]})
    added.update({"pool_norm.weight": [8], "pool_norm.bias": [8]})
    assert set(state) - plain == set(added) and plain - set(state) == {"norm.weight", "norm.bias"}
    assert {name: state[name] for name in added} == added
    np.testing.assert_array_equal(model.encoders[1].mlp_scale.gamma.numpy(), np.full(8, 0.1, "float32"))


def embedded(model, x):
    """进入第一层的 token。"""
    seen = []
    hook = model.encoders[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    model(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("position_embedding", ["none", "learnable", "sincos"])
@pytest.mark.parametrize(
    "options",
    [ALL_TOKENS, dict(pool="cls"), dict(class_token=True, register_tokens=1), dict(register_tokens=2), dict()],
)
def test_order_of_the_tokens_and_their_positions(options, position_embedding):
    model = ViT(**SMALL, **options, position_embedding=position_embedding)
    x = paddle.randn([2, 1, 8, 8])
    special = [token.numpy()[0] for token in (model.class_token, model.distillation_token) if token is not None]
    expected = np.concatenate([*(np.stack([token] * 2) for token in special), model.patch_embed(x).numpy()], axis=1)
    assert len(special) == (options.get("pool") == "cls" or options.get("class_token", 0)) + (
        "distillation_token" in options
    )
    if position_embedding != "none":
        table = model.position_embedding.numpy()
        assert table.shape == (1, len(special) + 4, 8)
        expected = expected + table
    if "register_tokens" in options:  # 没有位置编码,排在图块之前
        registers = np.repeat(model.register_tokens.numpy(), 2, axis=0)
        expected = np.insert(expected, [len(special)] * registers.shape[1], registers, axis=1)
    np.testing.assert_allclose(embedded(model, x), expected, atol=1e-6)
    assert model.num_prefix_tokens == expected.shape[1] - 4 and model.forward_features(x).shape == expected.shape


def test_registers_have_no_order():
    model = ViT(**SMALL, **ALL_TOKENS, position_embedding="learnable")
    x = paddle.randn([2, 1, 8, 8])
    before = model(x).numpy()
    model.register_tokens.set_value(model.register_tokens[:, [2, 0, 1]])
    np.testing.assert_allclose(model(x).numpy(), before, atol=1e-6)
    model.register_tokens.set_value(model.register_tokens + paddle.randn([1, 3, 8]))
    assert np.abs(model(x).numpy() - before).max() > 1e-3  # 图块看得见它们


def layer_norm(x, layer):
    x = x.astype("float64")
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.epsilon)
    return x * layer.weight.numpy() + layer.bias.numpy()


@pytest.mark.parametrize("norm_after_pool", [False, True])
def test_two_heads_and_their_average(norm_after_pool):
    model = ViT(**SMALL, **ALL_TOKENS, norm_after_pool=norm_after_pool)
    for layer in (model.pool_norm, model.head, model.distillation_head):
        for parameter in layer.parameters():
            parameter.set_value(parameter + paddle.randn(parameter.shape))
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x).numpy()
    if norm_after_pool:
        tokens = layer_norm(tokens, model.pool_norm)
    heads = (tokens[:, 0], model.head), (tokens[:, 1], model.distillation_head)
    expected = [token @ head.weight.numpy() + head.bias.numpy() for token, head in heads]
    for logits, right in zip(model.forward_heads(x), expected):
        np.testing.assert_allclose(logits.numpy(), right, rtol=1e-4, atol=1e-5)
    for mode in (model.train, model.eval):
        mode()
        np.testing.assert_allclose(model(x).numpy(), np.mean(expected, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [dict(), dict(class_token=True, register_tokens=3), dict(pool="cls")])
def test_norm_after_pool(options):
    model = ViT(**SMALL, **options, norm_after_pool=True, epsilon=1e-3)
    for parameter in model.pool_norm.parameters():
        parameter.set_value(parameter + paddle.randn(parameter.shape))
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x)
    np.testing.assert_array_equal(
        tokens.numpy(), model.encoders[1](model.encoders[0](paddle.to_tensor(embedded(model, x))))
    )
    tokens = tokens.numpy()
    pooled = tokens[:, 0] if "pool" in options else tokens[:, -4:].mean(axis=1)  # 平均只算图块
    expected = layer_norm(pooled, model.pool_norm) @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_class_token_does_not_enter_the_average():
    model = ViT(**SMALL, class_token=True, register_tokens=2)
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x).numpy()
    assert tokens.shape == (2, 3 + 4, 8)
    expected = tokens[:, 3:].mean(axis=1) @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


def test_layer_scale_of_zero_turns_every_block_off():
    model = ViT(**SMALL, **ALL_TOKENS, layer_scale=0.0)
    x = paddle.randn([2, 1, 8, 8])
    np.testing.assert_allclose(model.forward_features(x).numpy(), layer_norm(embedded(model, x), model.norm), atol=1e-5)


def test_epsilon_and_qk_norm_reach_every_layer():
    model = ViT(**SMALL, head="mlp", norm_after_pool=True, qk_norm=True, epsilon=1e-3)
    norms = {name: layer.epsilon for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.LayerNorm)}
    blocks = [
        f"encoders.{i}.{name}" for i in range(2) for name in ("attn_norm", "attn.q_norm", "attn.k_norm", "mlp_norm")
    ]
    assert norms == dict.fromkeys([*blocks, "pool_norm", "head.0"], 1e-3)
    assert ViT(**SMALL).norm.epsilon == 1e-5


def permute_patches(x, order):
    """把 [B, 1, 8, 8] 的四个 4x4 图块按 order 重排。"""
    patches = x.reshape([-1, 1, 2, 4, 2, 4]).transpose([0, 2, 4, 1, 3, 5]).reshape([-1, 4, 1, 4, 4])
    patches = patches[:, order].reshape([-1, 2, 2, 1, 4, 4]).transpose([0, 3, 1, 4, 2, 5])
    return patches.reshape([-1, 1, 8, 8])


@pytest.mark.parametrize(
    "position_embedding, same", [("none", True), ("learnable", False), ("sincos", False), ("sincos1d", False)]
)
def test_permuting_patches(position_embedding, same):
    model = ViT(**SMALL, position_embedding=position_embedding)
    if position_embedding == "learnable":
        model.position_embedding.set_value(paddle.randn(model.position_embedding.shape))
    x = paddle.randn([3, 1, 8, 8])
    before, after = model(x).numpy(), model(permute_patches(x, [2, 0, 3, 1])).numpy()
    assert (np.abs(before - after).max() < 1e-5) == same


def test_average_pool_is_the_mean_of_the_normalised_tokens():
    model = ViT(**SMALL)
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x)
    assert tokens.shape == [2, 4, 8]
    np.testing.assert_allclose(tokens.numpy().mean(axis=-1), 0, atol=1e-5)  # 归一化之后
    expected = tokens.numpy().mean(axis=1) @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


def test_class_token_pool_reads_the_first_token():
    model = ViT(**SMALL, pool="cls")
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x)
    assert tokens.shape == [2, 5, 8]
    expected = tokens.numpy()[:, 0] @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("position_embedding", ["sincos", "sincos1d"])
@pytest.mark.parametrize("distillation", [False, True])
def test_sincos_is_fixed_and_not_saved(position_embedding, distillation):
    model = ViT(**SMALL, pool="cls", distillation_token=distillation, position_embedding=position_embedding)
    assert "position_embedding" not in model.state_dict()
    assert "position_embedding" not in dict(model.named_parameters())
    zero = np.abs(model.position_embedding.numpy()[0]).sum(axis=1) == 0
    np.testing.assert_array_equal(zero, np.arange(1 + distillation + 4) <= distillation)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_sincos_1d_numbers_the_patches_row_by_row(pool):
    model = ViT(**{**SMALL, "image_size": (8, 12)}, pool=pool, position_embedding="sincos1d")
    patches = model.position_embedding.numpy()[0, int(pool == "cls") :]
    np.testing.assert_array_equal(patches, sincos_position_embedding_1d(2 * 3, 8))


def test_drop_path_grows_linearly():
    model = ViT(**{**SMALL, "depth": 5}, drop_path=0.2)
    np.testing.assert_allclose([encoder.drop_path.drop_path for encoder in model.encoders], [0, 0.05, 0.1, 0.15, 0.2])


def test_heads():
    mlp = ViT(**SMALL, head="mlp").head
    assert [type(layer).__name__ for layer in mlp] == ["LayerNorm", "Linear", "GELU", "Linear"]
    assert [mlp[1].weight.shape, mlp[3].weight.shape] == [[8, 32], [32, 3]]
    assert ViT(**{**SMALL, "num_classes": 0})(paddle.zeros([2, 1, 8, 8])).shape == [2, 8]
    assert ViT(**{**SMALL, "num_classes": 0}, **ALL_TOKENS)(paddle.zeros([2, 1, 8, 8])).shape == [2, 8]
    two = ViT(**SMALL, **ALL_TOKENS, head="mlp")
    assert two.head[3].weight.shape == two.distillation_head[3].weight.shape == [32, 3]
    with pytest.raises(UserError, match="distillation_token=True"):
        ViT(**SMALL, pool="cls").forward_heads(paddle.zeros([2, 1, 8, 8]))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(pool="max"), ("max", "avg")),
        (dict(position_embedding="rope"), ("rope", "sincos", "sincos1d")),
        (dict(position_embedding="sincos1d", embed_dim=7, num_heads=1), ("7",)),
        (dict(head="conv"), ("conv", "mlp")),
        (dict(depth=0), ("depth=0", "正整数")),
        (dict(num_classes=-1), ("-1",)),
        (dict(num_heads=3), ("8", "3")),
        (dict(patch_size=3), ("3", "8")),
        (dict(pool="cls", class_token=False), ("pool='cls'", "class_token=False")),
        (dict(distillation_token=True), ("distillation_token=True", "pool='avg'", "pool='cls'")),
        (dict(distillation_token=True, class_token=True), ("distillation_token=True", "pool='avg'", "pool='cls'")),
        (dict(register_tokens=-1), ("register_tokens", "-1")),
        (dict(register_tokens=1.5), ("register_tokens", "1.5")),
    ],
)
def test_errors(options, words):
    with pytest.raises(UserError) as error:
        ViT(**{**SMALL, **options})
    assert all(word in str(error.value) for word in words)


def test_the_settings_are_the_arguments():
    model = ViT(**SMALL, **ALL_TOKENS, epsilon=1e-6)
    defaults = {name: value.default for name, value in inspect.signature(ViT).parameters.items()}
    assert model.settings == {**defaults, **SMALL, **ALL_TOKENS, "epsilon": 1e-6}
    again = ViT(**model.settings)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
