"""Finding the layers of a vision transformer by what they are, and what token pruning has to know of each kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.surgery.found import named, part
from secateur.surgery.stand_in import Gone
from vit.tokens.costs import LayerCost

_NORMS = (("layernorm_before", "layernorm_after"), ("norm1", "norm2"))
Call = tuple[tuple[Any, ...], dict[str, Any]]


class EncoderLayer(ABC):
    """One layer, as token pruning sees it: an attention, then an MLP, each added to its input.

    Args:
        name: qualified name in the model.
        module: the layer.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.seen: dict[str, Tensor] = {}

    @abstractmethod
    def hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "batch tokens width"]:
        """The tokens that a call of the layer is given."""

    @abstractmethod
    def mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "batch one queries tokens"] | None:
        """What a call's mask adds to the logits: (batch or 1, 1, 1 or queries, tokens); None where there is none.

        Raises:
            ValueError: the mask has a shape that no padding mask has.
        """

    @abstractmethod
    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor, bias: Tensor | None) -> Call:
        """The call with other tokens, and with `bias` (batch, 1, 1 or tokens, tokens) for its mask."""

    @abstractmethod
    def attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "batch tokens width"]:
        """The first half of the layer: what its attention makes of a call's tokens."""

    @abstractmethod
    def feed(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """The second half of the layer: what its MLP makes of tokens."""

    @abstractmethod
    def output(self, tokens: Float[Tensor, "batch tokens width"]) -> Tensor:
        """Tokens in the layout that the layer returns."""

    @abstractmethod
    def watch(self) -> list[Any]:
        """Note what the attention looks at from now on; returns the handles of the hooks.

        Raises:
            ValueError: the layer has no attention (any more) whose keys could be seen.
        """

    @abstractmethod
    def keys(self) -> Float[Tensor, "batch tokens head_width"]:
        """The keys of the last call, mean over heads."""

    @abstractmethod
    def cls_attention(self, bias: Tensor | None) -> Float[Tensor, "batch tokens"]:
        """What the first token attended to in the last call, mean over heads, given what was added to its logits."""

    @abstractmethod
    def cost(self) -> LayerCost:
        """Multiply-adds of the layer and of looking into its attention."""


class ProjectedLayer(EncoderLayer):
    """A layer of transformers' ViT, DeiT or DINOv2, whose queries and keys have layers of their own."""

    def hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return args[0] if args else kwargs["hidden_states"]

    def mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None and (mask.dim() != 4 or mask.shape[1] != 1):
            raise ValueError(f"{self.name}: a mask (batch, 1, queries, tokens) is needed, got {tuple(mask.shape)}")
        return mask if mask is None else added(mask, self.hidden_states(args, kwargs).dtype)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor, bias: Tensor | None) -> Call:
        if kwargs.get("position_embeddings") is not None:
            raise ValueError(f"{self.name} turns its keys by their positions, which do not go with the tokens")
        rest = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "attention_mask")}
        return (tokens, bias, *args[2:]), rest

    def attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tokens = self.hidden_states(args, kwargs)
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        rest = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "attention_mask")}
        mixed = self.module.attention(self._norms()[0](tokens), mask, **rest)[0]  # type: ignore[operator]
        return self._added(mixed, tokens, "layer_scale1")

    def feed(self, tokens: Tensor) -> Tensor:
        return self._added(self.module.mlp(self._norms()[1](tokens)), tokens, "layer_scale2")  # type: ignore[operator]

    def output(self, tokens: Tensor) -> Tensor:
        return tokens

    def watch(self) -> list[Any]:
        return [
            self._projection(name).register_forward_hook(partial(self._note, name)) for name in ("q_proj", "k_proj")
        ]

    def keys(self) -> Tensor:
        return self._heads("k_proj").mean(dim=2)

    def cls_attention(self, bias: Tensor | None) -> Tensor:
        query, keys = self._heads("q_proj")[:, :1], self._heads("k_proj")
        scale: float = self.module.attention.scaling  # type: ignore[assignment, union-attr]
        return mean_attention((query.transpose(1, 2) @ keys.permute(0, 2, 3, 1))[:, :, 0] * scale, bias)

    def cost(self) -> LayerCost:
        attention, mlp = self.module.get_submodule("attention"), self.module.get_submodule("mlp")
        inner = width_of(attention, "k_proj")
        return LayerCost(
            matrix_elements(attention),
            inner + width_of(attention, "v_proj"),
            matrix_elements(mlp),
            getattr(attention, "head_dim", 0),
            len(self._norms()[0].weight),  # type: ignore[arg-type]
            cls_attention=inner,
        )

    def _note(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.seen[name] = output.detach()

    def _heads(self, name: str) -> Tensor:
        return self.seen[name].unflatten(-1, (-1, self.module.attention.head_dim))  # type: ignore[union-attr]

    def _projection(self, name: str) -> nn.Module:
        found = part(self.module, f"attention.{name}")
        if found is None:
            raise ValueError(f"{self.name} has no attention.{name}, so the pruner cannot see its keys and queries")
        return found

    def _norms(self) -> tuple[nn.Module, nn.Module]:
        first, second = next(names for names in _NORMS if part(self.module, names[0]) is not None)
        return self.module.get_submodule(first), self.module.get_submodule(second)

    def _added(self, branch: Tensor, tokens: Tensor, scale: str) -> Tensor:
        for name in (scale, "drop_path", "dropout"):
            step = part(self.module, name)
            branch = branch if step is None else step(branch)
        return branch + tokens


class TorchLayer(EncoderLayer):
    """An `nn.TransformerEncoderLayer`, whose queries, keys and values are made by one matrix."""

    module: nn.TransformerEncoderLayer

    def hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tokens = args[0] if args else kwargs["src"]
        if tokens.is_nested:
            raise ValueError(f"{self.name}: nested tensors cannot lose tokens; give padded ones")
        return tokens if self._batch_first() else tokens.transpose(0, 1)

    def mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        pairs, padding = self._masks(args, kwargs)
        if pairs is not None:
            raise ValueError(f"{self.name}: tokens cannot go under a src_mask; a src_key_padding_mask goes with them")
        if padding is None:
            return None
        allowed = ~padding if padding.dtype == torch.bool else padding
        return added(allowed, self.hidden_states(args, kwargs).dtype)[:, None, None]

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor, bias: Tensor | None) -> Call:
        pairs = padding = None
        if bias is not None and bias.shape[2] == 1:
            padding = bias[:, 0, 0]
        elif bias is not None:
            pairs = bias[:, 0].repeat_interleave(self.module.self_attn.num_heads, dim=0)
        rest = {"src_mask": pairs, "src_key_padding_mask": padding, "is_causal": False}
        return (self.output(tokens),), rest

    def attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        layer, tokens = self.module, args[0] if args else kwargs["src"]
        mask, padding = self._masks(args, kwargs)
        if layer.norm_first:
            tokens = tokens + layer._sa_block(layer.norm1(tokens), mask, padding)
        else:
            tokens = layer.norm1(tokens + layer._sa_block(tokens, mask, padding))
        return tokens if self._batch_first() else tokens.transpose(0, 1)

    def feed(self, tokens: Tensor) -> Tensor:
        layer = self.module
        if layer.norm_first:
            return tokens + layer._ff_block(layer.norm2(tokens))
        return layer.norm2(tokens + layer._ff_block(tokens))

    def output(self, tokens: Tensor) -> Tensor:
        return tokens if self._batch_first() else tokens.transpose(0, 1)

    def watch(self) -> list[Any]:
        attention = self.module.self_attn
        if isinstance(attention, Gone) or getattr(attention, "in_proj_weight", None) is None:
            raise ValueError(f"{self.name} has no attention with one matrix for q, k and v, whose keys could be seen")
        return [attention.register_forward_pre_hook(self._note, with_kwargs=True)]

    def keys(self) -> Tensor:
        # The mean of the keys is the product with the mean of the heads' matrices.
        weight, bias = self._rows(1)
        return nn.functional.linear(self.seen["tokens"], weight.mean(dim=0), None if bias is None else bias.mean(dim=0))

    def cls_attention(self, bias: Tensor | None) -> Tensor:
        # q.k is (W_k^T q).x and a term that is equal for all keys: no key has to be made.
        tokens = self.seen["tokens"]
        (queries, q_bias), (keys, _) = self._rows(0), self._rows(1)
        query = nn.functional.linear(tokens[:, 0], queries.flatten(0, 1), None if q_bias is None else q_bias.flatten())
        query = query.unflatten(-1, keys.shape[:2]).transpose(0, 1)
        probes = (query @ keys).transpose(0, 1)
        return mean_attention(probes @ tokens.transpose(1, 2) * keys.shape[1] ** -0.5, bias)

    def cost(self) -> LayerCost:
        attention, layer = self.module.self_attn, self.module
        width, inner = layer.linear1.in_features, 0 if isinstance(attention, Gone) else attention.out_proj.in_features
        return LayerCost(
            matrix_elements(attention),
            2 * inner,
            matrix_elements(layer.linear1) + matrix_elements(layer.linear2),
            inner // attention.num_heads if inner else 0,
            width,
            keys=width * (inner // attention.num_heads) if inner else 0,
            cls_attention=width * attention.num_heads if inner else 0,
            cls_query=2 * width * inner,
        )

    def _note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs["query"]
        self.seen["tokens"] = (tokens if self._batch_first() else tokens.transpose(0, 1)).detach()

    def _masks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        given = dict(zip(("src_mask", "src_key_padding_mask"), args[1:], strict=False)) | kwargs
        return given.get("src_mask"), given.get("src_key_padding_mask")

    def _batch_first(self) -> bool:
        return bool(getattr(self.module.self_attn, "batch_first", True))

    def _rows(self, which: int) -> tuple[Tensor, Tensor | None]:
        """(heads, head width, width) rows of the queries (0) or keys (1), and their (heads, head width) bias."""
        attention = self.module.self_attn
        heads = attention.num_heads
        weight = attention.in_proj_weight.detach().chunk(3)[which].unflatten(0, (heads, -1))
        bias = attention.in_proj_bias
        return weight, None if bias is None else bias.detach().chunk(3)[which].unflatten(0, (heads, -1))


def find_layers(model: nn.Module) -> list[EncoderLayer]:
    """The encoder layers of a vision transformer, in their order.

    Raises:
        ValueError: there are none, there are several encoders, or attention is within fixed windows.
    """
    found: list[EncoderLayer] = []
    for name, module in named(model):
        if isinstance(module, nn.TransformerEncoderLayer):
            found.append(TorchLayer(name, module))
        elif _is_projected(module):
            found.append(ProjectedLayer(name, module))
    windowed = [name for name, module in named(model) if _has_windows(module)]
    if windowed:
        raise ValueError(
            f"{type(model).__name__} attends within fixed windows or with position tables ({windowed[0]}): its tokens "
            "can be masked, but not removed"
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no encoder layers that are known: those of transformers' ViT, DeiT and "
            "DINOv2, and nn.TransformerEncoderLayer, are"
        )
    parents = list(dict.fromkeys(layer.name.rpartition(".")[0] for layer in found))
    if len(parents) > 1:
        raise ValueError(f"{type(model).__name__} has several encoders ({', '.join(parents)}): give one of them")
    return found


def count_prefix(model: nn.Module) -> int:
    """Tokens in front of the patches: class and distillation tokens and registers, by the names of their parameters."""
    names = {"cls_token", "class_token", "distillation_token", "dist_token", "register_tokens", "reg_token"}
    tokens = {name: tensor for name, tensor in model.named_parameters() if name.rpartition(".")[2] in names}
    return sum(tensor.shape[-2] if tensor.dim() > 1 else 1 for tensor in tokens.values())


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is True where attention is allowed as what is added to the logits; floats are that already."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def mean_attention(logits: Float[Tensor, "batch heads tokens"], bias: Tensor | None) -> Float[Tensor, "batch tokens"]:
    """Softmax over tokens, mean over heads; of `bias` (batch or 1, 1, 1 or tokens, tokens), the first row counts."""
    logits = logits if bias is None else logits + bias[:, :, 0]
    return logits.softmax(dim=-1).mean(dim=1)


def matrix_elements(module: nn.Module) -> int:
    """Elements of the matrices in a module: its multiply-adds for a token."""
    return sum(tensor.numel() for tensor in module.parameters() if tensor.dim() == 2)


def width_of(module: nn.Module, layer: str) -> int:
    """Rows of the matrix of a submodule; 0 where there is none."""
    found: Any = part(module, layer)
    return 0 if found is None else int(found.weight.shape[0])


def _is_projected(module: nn.Module) -> bool:
    attention, mlp = part(module, "attention"), part(module, "mlp")
    normed = any(part(module, first) is not None and part(module, second) is not None for first, second in _NORMS)
    if attention is None or mlp is None or not normed:
        return False
    return isinstance(attention, Gone) or all(part(attention, name) is not None for name in ("q_proj", "k_proj"))


def _has_windows(module: nn.Module) -> bool:
    window = vars(module).get("window_size")
    if isinstance(window, int | tuple) and window:
        return True
    tables = {"relative_position_bias", "relative_position_bias_table", "rel_pos_h"}
    return bool(tables & {*module._modules, *module._parameters})
