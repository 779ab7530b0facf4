"""Other people's methods: whatever peft has, under this package's tasks, monitors and checkpoints."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters import find_targets
from lit_spectral.errors import InputError, refusals_of
from lit_spectral.methods.base import Method
from lit_spectral.reading import forward_of
from lit_spectral.sharding import is_sharded

__all__ = ["Peft"]

# What peft's prompt methods must know of the model's head, by the end of its class's name.
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}

# Methods of peft whose targets are norms, embeddings or whole blocks.
NOT_ON_LINEAR_MAPS = {"LN_TUNING", "TRAINABLE_TOKENS", "ADAPTION_PROMPT"}


@dataclass
class Peft(Method):
    """A method of peft, by its config: AdaLoRA, DoRA, FourierFT, prompt and prefix tuning, and the rest.

    AdaLoRA's budget is allocated after every optimizer step, and its orthogonality penalty reaches
    the gradients without entering the loss that is reported.

    Args:
        config: the fields of a peft config, `peft_type` among them: `{peft_type: LORA, r: 8, use_dora: true}`.
            Without `target_modules` in it, the linear maps are those of our own methods; without AdaLoRA's
            `total_step` it is the run's number of optimizer steps.
    """

    defines_change = ("config",)

    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_from is not None:
            raise InputError("start_from: peft's methods can't begin at a given change; give LoRA, FCLoRA or the like")
        self._tuner: Any = None
        self._steps = 0  # that were not skipped
        self._planned = False  # whether total_step is the run's own

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Let peft put its layers on the model; prompt methods return it wrapped, for their own forward pass."""
        import peft

        self._tuner, self._steps = None, 0
        config = self._peft_config(model, encoder)
        model.requires_grad_(False)
        theirs = list(model.parameters())  # held, since peft makes 8-bit ones anew, and an id would be another's then
        before = {id(parameter): float(parameter.detach().double().sum()) for parameter in theirs}
        try:
            with refusals_of("method.config", "give other fields, of those that peft takes for this peft_type"):
                wrapped: Any = peft.get_peft_model(model, config)
        except InputError as error:
            if not any(is_sharded(parameter) for parameter in model.parameters()):
                raise
            raise InputError(
                "trainer.strategy: fsdp2 has weights in shards, which peft reads whole to start this method; give ddp"
            ) from error
        after = {id(parameter): float(parameter.detach().double().sum()) for parameter in wrapped.parameters()}
        if any(after.get(key, total) != total for key, total in before.items()):
            raise InputError(
                "method.config: this initialisation rewrites the backbone, which no checkpoint here would hold; "
                "use the method PiSSA, MiLoRA or SORSA, or another init_lora_weights"
            )
        if config.is_prompt_learning:
            return wrapped  # type: ignore[no-any-return]
        # The layers are in the model itself; unwrapped, they keep the paths that they have under our methods.
        self._tuner = wrapped.base_model
        return model

    @property
    def allocates(self) -> bool:
        """AdaLoRA gives ranks up."""
        return bool(self.config.get("peft_type") == "ADALORA")

    def plan(self, steps: int) -> None:
        """AdaLoRA's total_step is the run's length if not given; InputError where its target is not reached."""
        if not self.allocates:
            return
        if self._planned or self.config.get("total_step") is None:
            self.config, self._planned = self.config | {"total_step": steps}, True
        total = self.config["total_step"]
        if isinstance(total, (int, float)) and total > steps:
            raise InputError(
                f"method.config: total_step {total} is beyond the run's {steps} optimizer steps, in which AdaLoRA "
                f"would not get to its target_r; give total_step {steps}, or leave it out"
            )
        if self._tuner is not None:
            allocator = self._tuner.rankallocator
            allocator.set_total_step(total)
            # Counted from 0; at the step that is total_step - tfinal it gets there in any case.
            budgets = [budget for budget, acts in map(allocator.budget_schedule, range(steps)) if acts]
            if total - self.config.get("tfinal", 0) >= steps and budgets[-1:] != [allocator.target_bgt]:
                raise InputError(
                    f"method.config: the last allocation in the run's {steps} optimizer steps, one in deltaT, is too "
                    f"early for AdaLoRA to get to its target_r; give tfinal or a smaller deltaT"
                )

    def restart(self) -> None:
        """AdaLoRA's budget starts anew."""
        self._steps = 0
        if self.allocates and self._tuner is not None:
            self._tuner.rankallocator.reset_ipt()
            self._tuner.rankallocator.peft_config.rank_pattern = None

    def penalty(self) -> Tensor | None:
        """What peft's model adds to its loss, alone, with its graph; None where it adds nothing."""
        if self._tuner is None:
            return None
        outputs = SimpleNamespace(loss=torch.zeros((), device=next(self._tuner.model.parameters()).device))
        with forward_of(self._tuner.model, lambda *args, **kwargs: outputs):
            self._tuner.forward()
        return outputs.loss if outputs.loss.requires_grad else None

    def after_step(self) -> None:
        """AdaLoRA's allocation of its budget; other methods have none."""
        if hasattr(self._tuner, "update_and_allocate"):
            self._tuner.update_and_allocate(self._steps)
            self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What AdaLoRA's allocator remembers from step to step, for an exact resume."""
        allocator = getattr(self._tuner, "rankallocator", None)
        if allocator is None:
            return {}
        averages = {name: dict(value) for name, value in vars(allocator).items() if isinstance(value, dict)}
        return {"averages": averages, "rank_pattern": allocator.peft_config.rank_pattern, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; before `apply` there is nothing to go on with."""
        if state and self._tuner is not None:
            device = next(self._tuner.parameters()).device
            for name, average in state["averages"].items():
                setattr(self._tuner.rankallocator, name, {key: value.to(device) for key, value in average.items()})
            self._tuner.rankallocator.peft_config.rank_pattern = state["rank_pattern"]
            self._steps = state["steps"]

    def _peft_config(self, model: nn.Module, encoder: nn.Module) -> Any:
        import peft

        fields = copy.deepcopy(self.config)  # which peft writes to
        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(fields.get("peft_type"))  # type: ignore[arg-type]
        if kind is None:
            known = ", ".join(sorted(str(t.value) for t in peft.PEFT_TYPE_TO_CONFIG_MAPPING))
            raise InputError(f"method.config: peft_type {fields.get('peft_type')!r} unknown; peft has {known}")
        if fields.get("use_asa"):
            raise InputError(
                "method.config: use_asa gives subspaces up in a way that no checkpoint holds; leave it out"
            )
        ours = "target_modules" in kind.__dataclass_fields__ and fields["peft_type"] not in NOT_ON_LINEAR_MAPS
        if ours and fields.get("target_modules") is None:
            wanted = {id(layer) for layer in find_targets(encoder, self.target_modules).values()}
            fields["target_modules"] = [name for name, layer in model.named_modules() if id(layer) in wanted]
        elif self.target_modules is not None:
            raise InputError("target_modules: give it in method.config, or not at all for a prompt method")
        with refusals_of("method.config", f"give the fields of peft's {kind.__name__}"):
            config = kind(**fields)
        if config.is_prompt_learning and config.task_type is None:
            endings = [task for ending, task in TASK_TYPES.items() if type(model).__name__.endswith(ending)]
            config.task_type = (endings or ["FEATURE_EXTRACTION"])[0]
        return config
