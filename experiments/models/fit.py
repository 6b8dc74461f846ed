"""Whether a model, its processor and the lengths of a task fit each other."""

from __future__ import annotations

from typing import Any

import torch

from elalora.errors import UserError, first_line
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.data.prompts import Prompter
from experiments.data.text_items import PAD_MULTIPLE
from experiments.models.causal_loss import use_labelled_positions
from experiments.models.decoding import decoding, greedy
from experiments.models.padding import share_pad_token
from experiments.models.positions import longest


def fit(model: ModelConfig, task: TaskConfig, network: Any, processor: Any) -> None:
    """Checks that tokenizer or image size and the task's lengths fit the model.

    The model gets the tokenizer's padding token, and the task's generation settings in place of its own. A causal
    model computes its loss from the labelled positions alone.

    Raises:
        UserError: token ids beyond the embedding, more tokens than positions, another padding token, generation
            settings that the task leaves open, or images of another size.
    """
    if task.kind == "image":
        _check_size(model, network, processor.size)
        return
    rows = network.get_input_embeddings().num_embeddings
    if len(processor) > rows:
        raise UserError(
            f"model.path={model.path}: its tokenizer has {len(processor)} ids, the model {rows} embeddings; "
            "they are not of the same model"
        )
    share_pad_token(network, processor, model)
    limits = {"max_length": (task.max_length, longest(network, None, PAD_MULTIPLE))}
    if task.kind == "summarization":
        limits = {
            "max_length": (task.max_length, longest(network, False, PAD_MULTIPLE)),
            "target_length": (task.target_length, longest(network, True, PAD_MULTIPLE)),
            # the decoder starts with a token that is not generated
            "generate_length": (task.generate_length + 1, longest(network, True)),
        }
        network.generation_config = decoding(task, network.generation_config, f"model.path={model.path}")
    elif task.kind == "causal":
        generated = task.generate_length if task.answer == "generate" else 0
        limits = {"max_length": (task.max_length + generated, longest(network, None, PAD_MULTIPLE))}
        stop = Prompter(task, processor).stop
        use_labelled_positions(network)
        network.generation_config = greedy(task, network.generation_config, processor.pad_token_id, [stop])
    for name, (length, most) in limits.items():
        if most is not None and length > most:
            fits = most - (length - getattr(task, name))
            raise UserError(
                f"task.{name}={getattr(task, name)} does not fit the {most} positions of {model.name}; "
                f"type task.{name}={fits}"
            )


def _check_size(model: ModelConfig, network: Any, made: tuple[int, int]) -> None:
    """Tries one image: DINOv2 and ConvNeXt take other sizes than their configuration names, ViT and CLIP do not."""
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(pixel_values=torch.zeros(1, 3, *made))
    except (ValueError, RuntimeError) as error:
        config = getattr(network.config, "vision_config", network.config)
        raise UserError(
            f"model.path={model.path} expects images of {getattr(config, 'image_size', 'another size')}, its "
            f"preprocessor_config.json makes {made[0]} x {made[1]} ({first_line(error)})"
        ) from error
    finally:
        network.train(training)
