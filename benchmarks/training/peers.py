"""The peers of the training benchmark, each on the same model, data, optimiser and threads."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import torch
from protocol import Clock, job


def adamw(model: Any, o: dict[str, Any]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"], weight_decay=0.0,
        fused=True,
    )  # fmt: skip


def hf_model(spec: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if "shape" not in spec:
        return AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    s = spec["shape"]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=s["vocab_size"], hidden_size=s["hidden_size"],
            intermediate_size=s["intermediate_size"], num_hidden_layers=s["layers"],
            num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"],
            head_dim=s["head_dim"], max_position_embeddings=s["max_positions"],
            tie_word_embeddings=s["tied"],
        )
    ).float()  # fmt: skip


def litgpt_model(spec: dict[str, Any]) -> Any:
    from litgpt import GPT, Config

    s = spec["shape"]
    return GPT(
        Config(
            name="shape", block_size=s["max_positions"], n_layer=s["layers"],
            n_embd=s["hidden_size"], vocab_size=s["vocab_size"],
            padded_vocab_size=s["vocab_size"], n_head=s["heads"], head_size=s["head_dim"],
            n_query_groups=s["kv_heads"], rotary_percentage=1.0, parallel_residual=False,
            bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=s["intermediate_size"],
        )
    )  # fmt: skip


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    return ids, mask, ids.masked_fill(mask == 0, -100)


def plain(spec: dict[str, Any]) -> None:
    """What one writes by hand: autocast, the model's own loss, AdamW."""
    litgpt = spec["peer"] == "litgpt"
    model = litgpt_model(spec) if litgpt else hf_model(spec)
    model.train()
    optimiser = adamw(model, spec["optimiser"])
    rows = itertools.cycle(spec["rows"])
    clock = Clock()
    while True:
        clock.start()
        ids, mask, labels = padded([next(rows) for _ in range(spec["batch"])])
        with torch.autocast("cpu", torch.bfloat16, enabled=spec["precision"] == "bf16"):
            if litgpt:
                from litgpt.utils import chunked_cross_entropy

                logits = model(ids[:, :-1])
                loss = chunked_cross_entropy(logits, labels[:, 1:], chunk_size=0)
            else:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec["optimiser"]["clip"])
        optimiser.step()
        clock.done(float(loss.detach()), int((labels[:, 1:] != -100).sum()))


def trl(spec: dict[str, Any]) -> None:
    """TRL's trainers, given ids, in the order of the job."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    o, kind, batch = spec["optimiser"], spec["kind"], spec["batch"]
    clock: Clock | None = None
    seen: list[float] = []

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            nonlocal clock
            clock = Clock()
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            assert clock is not None
            clock.done(seen[-1], count())
            clock.start()

    def in_order(base: Any) -> Any:
        class Ordered(base):  # type: ignore[misc,valid-type]
            def _get_train_sampler(self, dataset: Any = None) -> Any:
                if kind == "grpo":
                    return super()._get_train_sampler(dataset)
                return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                seen.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
                return loss

        return Ordered

    def count() -> int:
        if kind == "grpo":
            return batch * spec["group"] * spec["new"]
        return batch if kind == "dpo" else spec["mean_tokens"]

    with tempfile.TemporaryDirectory() as folder:
        common = dict(
            output_dir=folder, max_steps=spec["steps"], per_device_train_batch_size=batch,
            learning_rate=o["lr"], adam_beta1=o["betas"][0], adam_beta2=o["betas"][1],
            adam_epsilon=o["eps"], weight_decay=0.0, max_grad_norm=o["clip"],
            lr_scheduler_type="constant", bf16=spec["precision"] == "bf16", use_cpu=True,
            report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True,
            optim="adamw_torch_fused",
        )  # fmt: skip
        if spec["peer"] != "trl recomputing":  # as it comes it computes activations again
            common["gradient_checkpointing"] = False
        model, tokenizer = hf_model(spec), AutoTokenizer.from_pretrained(spec["model"])
        if kind == "sft":
            data = Dataset.from_dict({"input_ids": spec["rows"]})
            packing = spec["peer"] == "trl packed"
            args: Any = SFTConfig(max_length=spec["length"], packing=packing, **common)
            trainer = in_order(SFTTrainer)(
                model=model, args=args, train_dataset=data, processing_class=tokenizer,
                callbacks=[Steps()],
            )  # fmt: skip
        elif kind == "dpo":
            if batch > 16:  # whole, its logits take over 20 GB
                common |= {"per_device_train_batch_size": 16,
                           "gradient_accumulation_steps": batch // 16}  # fmt: skip
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            data = Dataset.from_dict(
                dict(zip(names, map(list, zip(*spec["pairs"], strict=True)), strict=True))
            )

            class GivenIds(in_order(DPOTrainer)):  # type: ignore[misc]
                def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                    return dataset

            before = spec["peer"] == "trl precomputing"  # as it comes: anew in every step
            args = DPOConfig(beta=0.1, max_length=None, precompute_ref_log_probs=before, **common)
            trainer = GivenIds(
                model=model, args=args,
                train_dataset=data, processing_class=tokenizer, callbacks=[Steps()],
            )  # fmt: skip
        else:
            texts = [tokenizer.decode(p) for p in spec["prompts"]]
            common |= {"per_device_train_batch_size": 16,
                       "gradient_accumulation_steps": batch * spec["group"] // 16}  # fmt: skip
            new = spec["new"]
            args = GRPOConfig(
                num_generations=spec["group"], max_completion_length=new, beta=0.0,
                temperature=1.0, generation_kwargs={"min_new_tokens": new}, **common,
            )  # fmt: skip
            trainer = in_order(GRPOTrainer)(
                model=model, args=args, train_dataset=Dataset.from_dict({"prompt": texts}),
                reward_funcs=last_even, processing_class=tokenizer, callbacks=[Steps()],
            )  # fmt: skip
        trainer.train()


def last_even(completion_ids: Any, **_: Any) -> list[float]:
    return [1.0 if ids and int(ids[-1]) % 2 == 0 else -1.0 for ids in completion_ids]


if __name__ == "__main__":
    spec = job()
    torch.set_num_threads(spec["threads"])
    if spec["peer"].startswith("trl"):
        trl(spec)
    else:
        plain(spec)
