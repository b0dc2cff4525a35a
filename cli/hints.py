"""What users of other programs type, and what it is called here."""

# A key of nanoGPT, litgpt, torchtitan, the Hugging Face Trainer or Megatron -> a key here, or a setting and what it does.
OTHER_NAMES = {
    **dict.fromkeys(("lr", "max_lr", "peak_lr", "adam_lr"), "learning_rate"),
    **dict.fromkeys(("min_lr", "lr_min", "final_lr"), "min_learning_rate"),
    **dict.fromkeys(("max_iters", "iters", "num_steps", "steps", "total_steps", "train_steps", "train_iters"), "max_steps"),
    **dict.fromkeys(("lr_decay_iters", "lr_decay_steps"), "max_steps"),
    **dict.fromkeys(("warmup_iters", "warmup", "lr_warmup_steps", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "max_steps; dry_run=true prints the epochs"),
    **dict.fromkeys(("wd", "l2"), "weight_decay"),
    **dict.fromkeys(("adam_beta1", "betas"), "beta1"),
    "adam_beta2": "beta2",
    **dict.fromkeys(("eps", "adam_eps"), "adam_epsilon"),
    **dict.fromkeys(("clip_grad", "clip_grad_norm", "max_grad_norm", "max_norm", "gradient_clip_val"), "grad_clip"),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "bs"), "micro_batch_size of one forward pass, global_batch_size of one step"
    ),
    **dict.fromkeys(("per_device_train_batch_size", "local_batch_size", "device_batch_size"), "micro_batch_size"),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum_steps", "grad_accum", "accumulate_grad_batches"),
        "global_batch_size; accumulation is global_batch_size / micro_batch_size / ranks",
    ),
    **dict.fromkeys(
        ("block_size", "seq_len", "seq_length", "max_seq_len", "max_seq_length", "context_length", "n_ctx", "n_positions"),
        "model.sequence_length",
    ),
    **dict.fromkeys(("sequence_length", "max_position_embeddings"), "model.sequence_length"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth"), "model.n_layer"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_attention_heads"), "model.n_head"),
    **dict.fromkeys(("n_embd", "n_embed", "hidden_size", "hidden_dim", "d_model", "dim", "embed_dim"), "model.n_embd"),
    "rope_theta": "model.rope_base",
    "vocab_size": "data.vocab_size",
    **dict.fromkeys(("model_name", "model_type", "arch"), "model"),
    **dict.fromkeys(("init_from", "resume_from", "resume_from_checkpoint"), "resume; the same command starts and continues"),
    **dict.fromkeys(("dtype", "torch_dtype", "mixed_precision", "amp", "bf16", "fp16"), "precision=bf16 or fp32"),
    **dict.fromkeys(("dataset", "dataset_name"), "data"),
    **dict.fromkeys(("data_dir", "data_path", "dataset_path", "train_data"), "data.dir"),
    "tokenizer": "data.tokenizer",
    **dict.fromkeys(("output_dir", "save_dir", "checkpoint_dir", "dump_folder"), "out_dir"),
    **dict.fromkeys(("name", "exp_name", "experiment_name", "wandb_run_name", "wandb_name"), "run_name"),
    **dict.fromkeys(("eval_iters", "eval_batches"), "eval_windows"),
    **dict.fromkeys(("eval_every", "eval_steps", "val_check_interval", "val_interval"), "eval_interval"),
    **dict.fromkeys(("log_every", "logging_steps", "log_freq"), "log_interval"),
    **dict.fromkeys(("save_every", "save_interval", "save_steps", "checkpoint_every", "ckpt_interval"), "checkpoint_interval"),
    "save_total_limit": "keep_checkpoints",
    **dict.fromkeys(("wandb_log", "use_wandb"), "wandb.mode=online"),
    "wandb_project": "wandb.project",
    **dict.fromkeys(("wandb_group", "wandb_entity", "wandb_tags"), "wandb"),
    **dict.fromkeys(("use_tensorboard", "tensorboard_log"), "tensorboard"),
    **dict.fromkeys(("use_compile", "torch_compile"), "compile"),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing", "checkpoint_activations"), "recompute_layers"),
    **dict.fromkeys(("fsdp", "use_fsdp", "hsdp", "ddp", "strategy", "sharding_strategy"), "parallel=ddp, fsdp or hsdp"),
    **dict.fromkeys(
        ("nproc", "gpus", "num_gpus", "devices", "world_size"), "parallel; torchrun --nproc_per_node=N starts N processes"
    ),
}
# A group whose choices are names, given a number.
NUMBERS_OF_GROUPS = {"context": "any number of tokens: model.sequence_length={value}"}


def other_name(key: str, known: list[str], groups: list[str]) -> str:
    """Return the end of a complaint about an unknown key: what this program calls it; empty if nothing is known.

    Args:
        known: the program's keys, without those below groups, which depend on what is chosen.
    """
    hint = OTHER_NAMES.get(key) or OTHER_NAMES.get(key.rpartition(".")[2], "")
    name = hint.replace("=", " ").replace(";", " ").partition(" ")[0]
    if not name or name not in known and name.partition(".")[0] not in groups:
        return ""
    return f": did you mean '{hint}'?" if hint == name else f": use {hint}"
