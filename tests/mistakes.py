"""Mistakes that a user can make at the command line, each with how its line begins, and what made them."""
# ruff: noqa: E501

# Files that mistakes are made with, in the folder where commands run.
FILES = {
    "empty.yaml": b"",
    "unclosed.yaml": b"model: [unclosed\n  x: {",
    "binary.yaml": bytes(range(256)),
    "control.yaml": b"model: \x01\n",
    "list.yaml": b"- model\n",
    "text.yaml": b"model\n",
    "unknown_section.yaml": b"modle: {}\n",
    "unknown_setting.yaml": b"model:\n  class_path: SequenceClassification\n  init_args:\n    bakcbone: x\n",
    "number_for_a_section.yaml": b"trainer: 3\n",
    "list_for_a_section.yaml": b"trainer: [1]\n",
    "twice.yaml": b"trainer:\n  max_epochs: 1\n  max_epochs: 2\n",
    "twice_above.yaml": b"trainer: {max_epochs: 1}\nmodel: {class_path: CausalLM}\ntrainer: {max_steps: 1}\n",
    "tabs.yaml": b"trainer:\n\tmax_epochs: 1\n",
    "latin.yaml": "trainer: {max_epochs: 1} # \u00e9\n".encode("latin-1"),
    "no_model.yaml": b"trainer: {max_epochs: 1}\n",
    "anchor.yaml": b"trainer: *nothing\n",
    "unknown_tag.yaml": b"trainer: !python/object/apply:os.system [ls]\n",
    "empty.txt": b"",
    "latin.txt": "caf\u00e9\n".encode("latin-1") * 50,
    "text.txt": b"the cat sat on the mat and the dog ran over the hill again\n" * 60,
    "garbage.ckpt": b"garbage",
    "empty.ckpt": b"",
    "text.ckpt": b"a text\n",
    "rows.jsonl": b'{"sentence1": "a", "sentence2": "b", "label": 1}\n',
    "samples.jsonl": b'{"task_id": "HumanEval/0", "completion": "    return 1"}\n',
    "broken.jsonl": b'{"task_id": "HumanEval/0", "completion": "    return 1"\n',
    "other.jsonl": b'{"a": 1}\n',
    "numbers.jsonl": b'{"task_id": 0, "completion": 1}\n',
    "list.jsonl": b"[1]\n",
    "blank.jsonl": b"\n\n",
}

# Flags after those of FCLoRA on MRPC.
ENCODER = """
fit --modle.backbone=x ⇒ --modle.backbone: there is no such flag; see --help
fit --optimzer=3 ⇒ --optimzer: there is no such flag; see --help
fit --trainer.max_epoks=3 ⇒ --trainer.max_epoks: there is no such flag; did you mean --trainer.max_e
fit --foo ⇒ --foo: there is no such flag; see --help
fit -x ⇒ -x: there is no such flag; see --help
fit extra ⇒ extra: no flag stands before it; write --flag=value
fit --trainer.max_epochs ⇒ argument --trainer.max_epochs: expected one argument
fit --trainer.max_epochs= ⇒ trainer.max_epochs: '' is not a whole number or null
fit --trainer.max_epochs=abc ⇒ trainer.max_epochs: 'abc' is not a whole number or null
fit --trainer.max_epochs=1.5 ⇒ trainer.max_epochs: '1.5' is not a whole number or null
fit --trainer.max_epochs=[1] ⇒ trainer.max_epochs: '[1]' is not a whole number or null
fit --trainer.max_steps=abc ⇒ trainer.max_steps: 'abc' is not a whole number
fit --trainer.max_steps=1.5 ⇒ trainer.max_steps: '1.5' is not a whole number
fit --trainer.precision=3 ⇒ trainer.precision: '3' is not 64, 32, 16 or transformer-engine, transfor
fit --trainer.precision=bf17 ⇒ trainer.precision: 'bf17' is not a whole number or transformer-engine, t
fit --trainer.devices=-1 ⇒ settings: `devices` selected with `CPUAccelerator` should be an int > 0.
fit --trainer.num_nodes=0 ⇒ settings: `num_nodes` must be a positive integer, but got 0.
fit --trainer.num_nodes=-1 ⇒ settings: `num_nodes` must be a positive integer, but got -1.
fit --trainer.num_nodes=two ⇒ trainer.num_nodes: 'two' is not a whole number
fit --trainer.callbacks=Foo ⇒ trainer.callbacks: there is no Foo; see --help
fit --trainer.callbacks=3 ⇒ trainer.callbacks: there is no 3; see --help
fit --trainer.callbacks+=Foo ⇒ trainer.callbacks: there is no Foo; see --help
fit --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.foo=3 ⇒ trainer.callbacks.foo: ModelCheckpoint has no such setting; see --help
fit --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.save_top_k=many ⇒ trainer.callbacks.save_top_k: 'many' is not a whole number
fit --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.mode=best ⇒ `mode` can be min, max but got best
fit --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.every_n_epochs=-1 ⇒ Invalid value for every_n_epochs=-1. Must be >= 0
fit --trainer.callbacks+=EarlyStopping ⇒ trainer.callbacks: EarlyStopping needs monitor; give --trainer.callbacks
fit --trainer.callbacks+=SpectralMonitor --trainer.callbacks.every_n_steps=-1 ⇒ every_n_steps must be at least 0, not -1
fit --trainer.callbacks+=SpectralMonitor --trainer.callbacks.flush_every_n_steps=0 ⇒ flush_every_n_steps must be at least 1, not 0
fit --trainer.callbacks+=SpectralMonitor --trainer.callbacks.flush_every_n_steps=abc ⇒ trainer.callbacks.flush_every_n_steps: 'abc' is not a whole number
fit --trainer.callbacks+=LMEvalCallback ⇒ trainer.callbacks: LMEvalCallback needs tasks; give --trainer.callbacks.
fit --trainer.callbacks+=StochasticWeightAveraging ⇒ trainer.callbacks: StochasticWeightAveraging needs swa_lrs; give --train
fit --trainer.callbacks+=LearningRateMonitor --trainer.callbacks.logging_interval=second ⇒ trainer.callbacks.logging_interval: 'second' is not step, epoch or null
fit --trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling=3 ⇒ trainer.callbacks.scheduling: '3' is not a mapping
fit --trainer.callbacks+=Timer --trainer.callbacks.duration=long ⇒ `Timer(duration='long')` is not a valid duration. Expected a string in t
fit --trainer.logger=Foo ⇒ trainer.logger: there is no Foo; there are
fit --trainer.logger=3 ⇒ trainer.logger: there is no 3; there are
fit --trainer.logger.foo=1 ⇒ trainer.logger.foo: TensorBoardLogger has no such setting; there are def
fit --trainer.gradient_clip_val=abc ⇒ trainer.gradient_clip_val: 'abc' is not a whole number or a finite numbe
fit --trainer.gradient_clip_val=nan ⇒ trainer.gradient_clip_val: 'nan' is not a whole number or a finite numbe
fit --trainer.gradient_clip_algorithm=foo ⇒ `gradient_clip_algorithm` foo is invalid. Allowed algorithms: ['value',
fit --trainer.accumulate_grad_batches=-1 ⇒ trainer.accumulate_grad_batches must be at least 1, not -1
fit --trainer.accumulate_grad_batches=1.5 ⇒ trainer.accumulate_grad_batches: '1.5' is not a whole number
fit --trainer.val_check_interval=2.5 ⇒ You have passed invalid value 2.5 for val_check_interval, it has to be i
fit --trainer.val_check_interval=-1 ⇒ You have passed invalid value -1 for val_check_interval, it has to be in
fit --trainer.check_val_every_n_epoch=x ⇒ trainer.check_val_every_n_epoch: 'x' is not a whole number or null
fit --trainer.limit_train_batches=0 ⇒ trainer.limit_train_batches: 0 leaves nothing to fit; give more
fit --trainer.limit_train_batches=1.5 ⇒ You have passed invalid value 1.5 for limit_train_batches, it has to be
fit --trainer.limit_train_batches=nan ⇒ trainer.limit_train_batches: 'nan' is not a whole number or a finite num
fit --trainer.limit_val_batches=-3 ⇒ You have passed invalid value -3 for limit_val_batches, it has to be in
fit --trainer.limit_val_batches=x ⇒ trainer.limit_val_batches: 'x' is not a whole number or a finite number
fit --trainer.max_steps=0 ⇒ trainer.max_steps: 0 leaves nothing to fit; give more
fit --trainer.max_steps=-5 ⇒ `max_steps` must be a non-negative integer or -1 (infinite steps). You p
fit --trainer.min_epochs=-1 ⇒ trainer.min_epochs must be at least 0, not -1
fit --trainer.min_epochs=x ⇒ trainer.min_epochs: 'x' is not a whole number or null
fit --trainer.log_every_n_steps=x ⇒ trainer.log_every_n_steps: 'x' is not a whole number or null
fit --trainer.fast_dev_run=maybe ⇒ trainer.fast_dev_run: 'maybe' is not a whole number or true or false
fit --trainer.detect_anomaly=perhaps ⇒ trainer.detect_anomaly: 'perhaps' is not true or false
fit --trainer.deterministic=perhaps ⇒ trainer.deterministic: 'perhaps' is not true or false or warn or null
fit --trainer.benchmark=perhaps ⇒ trainer.benchmark: 'perhaps' is not true or false or null
fit --trainer.inference_mode=perhaps ⇒ trainer.inference_mode: 'perhaps' is not true or false
fit --trainer.plugins=Foo ⇒ trainer.plugins: there is no Foo; there are BitsandbytesPrecision, DeepS
fit --trainer.enable_progress_bar=3 ⇒ trainer.enable_progress_bar: '3' is not true or false or null
fit --trainer.use_distributed_sampler=3 ⇒ trainer.use_distributed_sampler: '3' is not true or false
fit --trainer.sync_batchnorm=3 ⇒ trainer.sync_batchnorm: '3' is not true or false
fit --trainer.strategy=deepspeed ⇒ To use the `DeepSpeedStrategy`, you must have DeepSpeed installed. Insta
fit --trainer.strategy=ModelParallelStrategy ⇒ settings: You selected an invalid strategy name: `strategy='modelparalle
fit --trainer.strategy=modelparallel ⇒ settings: You selected an invalid strategy name: `strategy='modelparalle
fit --seed_everything=x ⇒ seed_everything: 'x' is not true or false or a whole number
fit --seed_everything=-3 ⇒ seed_everything must be at least 0, not -3
fit --seed_everything=1e30 ⇒ seed_everything: '1e+30' is not true or false or a whole number
fit --seed_everything=1.5 ⇒ seed_everything: '1.5' is not true or false or a whole number
fit --config=empty.yaml ⇒ config: empty.yaml holds no settings; write sections such as `model:`, `
fit --config=unclosed.yaml ⇒ config: unclosed.yaml, line 2: not YAML: expected ',' or ']', but got ':
fit --config=binary.yaml ⇒ config: binary.yaml is not text in UTF-8; give a YAML file
fit --config=control.yaml ⇒ config: control.yaml is not YAML: unacceptable character #x0001: special
fit --config=list.yaml ⇒ config: list.yaml holds no settings; write sections such as `model:`, `d
fit --config=text.yaml ⇒ config: text.yaml holds no settings; write sections such as `model:`, `d
fit --config=unknown_section.yaml ⇒ config: unknown_section.yaml, line 1: there is no section modle; did you
fit --config=unknown_setting.yaml ⇒ model.bakcbone: SequenceClassification has no such setting; did you mean
fit --config=number_for_a_section.yaml ⇒ config: number_for_a_section.yaml, line 1: trainer is a section of setti
fit --config=list_for_a_section.yaml ⇒ config: list_for_a_section.yaml, line 1: trainer is a section of setting
fit --config=twice.yaml ⇒ config: twice.yaml, line 3: max_epochs stands in line 2 already; leave o
fit --config=twice_above.yaml ⇒ config: twice_above.yaml, line 3: trainer stands in line 1 already; leav
fit --config=tabs.yaml ⇒ config: tabs.yaml, line 2: not YAML: found character '\\t' that cannot st
fit --config=latin.yaml ⇒ config: latin.yaml is not text in UTF-8; give a YAML file
fit --config=anchor.yaml ⇒ config: anchor.yaml, line 1: not YAML: found undefined alias 'nothing'
fit --config=unknown_tag.yaml ⇒ config: unknown_tag.yaml, line 1: trainer is a section of settings
fit --config=/nowhere.yaml ⇒ config: there is no file /nowhere.yaml in
fit --config=configs/fclora_roberta_mrcp.yaml ⇒ config: there is no file configs/fclora_roberta_mrcp.yaml in
fit --config=. ⇒ config: . is a folder; give a file
fit --config=garbage.ckpt ⇒ config: garbage.ckpt holds no settings; write sections such as `model:`,
fit --config ⇒ argument -c/--config: expected one argument
fit --config= ⇒ config: there is no file in
fit --model=Foo ⇒ model: there is no Foo; there are
fit --model=LoRA ⇒ model: there is no LoRA; there are
fit --model=torch.nn.Linear ⇒ model: there is no torch.nn.Linear; there are
fit --model=lit_spectral.tasks.Foo ⇒ model: '' is no mapping of settings
fit --model=nowhere.Foo ⇒ model: No module named 'nowhere'
fit --model=3 ⇒ model: there is no 3; there are
fit --model=null ⇒ : it needs fit.model; give --.fit.model
fit --model.foo=3 ⇒ model.foo: SequenceClassification has no such setting; there are backbon
fit --model.class_path=Foo ⇒ model: there is no Foo; there are
fit --model.init_args=3 ⇒ model: '3' is no mapping of settings
fit --model.init_args={foo:3} ⇒ model: '{foo:3}' is no mapping of settings
fit --model.backbone=[1] ⇒ model.backbone: '[1]' is not text
fit --model.backbone=https://example.org/model ⇒ backbone: there is no folder https://example.org/model; give a folder in
fit --model.num_labels=-1 ⇒ num_labels must be at least 1, not -1
fit --model.num_labels=abc ⇒ model.num_labels: 'abc' is not a whole number or null
fit --model.metrics=bleu ⇒ model.metrics: 'bleu' is not a list or null
fit --model.label_names=3 ⇒ model.label_names: '3' is not a list or null
fit --model.warmup_steps=abc ⇒ model.warmup_steps: 'abc' is not a finite number
fit --model.warmup_steps=nan ⇒ model.warmup_steps: 'nan' is not a finite number
fit --model.warmup_steps=inf ⇒ model.warmup_steps: 'inf' is not a finite number
fit --model.warmup_steps=[1] ⇒ model.warmup_steps: '[1]' is not a finite number
fit --model.optimizer=Foo ⇒ model.optimizer: there is no Foo; there are
fit --model.optimizer=LoRA ⇒ model.optimizer: there is no LoRA; there are
fit --model.optimizer=torch.nn.Linear ⇒ model.optimizer: there is no torch.nn.Linear; there are
fit --model.optimizer=3 ⇒ model.optimizer: there is no 3; there are
fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr=abc ⇒ model.optimizer.lr: 'abc' is not a finite number
fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr=inf ⇒ model.optimizer.lr: 'inf' is not a finite number
fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr=nan ⇒ model.optimizer.lr: 'nan' is not a finite number
fit --model.optimizer=torch.optim.AdamW --model.optimizer.weight_decay=nan ⇒ model.optimizer.weight_decay: 'nan' is not a finite number
fit --model.optimizer=torch.optim.AdamW --model.optimizer.betas=3 ⇒ model.optimizer.betas: '3' is not a list of that length
fit --model.optimizer=torch.optim.AdamW --model.optimizer.betas=[0.9] ⇒ model.optimizer.betas: Expected a tuple with 2 elements. Got value: [0.9
fit --model.optimizer=torch.optim.AdamW --model.optimizer.eps=nan ⇒ model.optimizer.eps: 'nan' is not a finite number
fit --model.optimizer=torch.optim.AdamW --model.optimizer.foo=1 ⇒ model.optimizer.foo: AdamW has no such setting; there are amsgrad, betas
fit --model.optimizer=torch.optim.AdamW --model.optimizer.learning_rate=1e-3 ⇒ model.optimizer.learning_rate: AdamW has no such setting; there are amsg
fit --model.method=Foo ⇒ model.method: there is no Foo; there are
fit --model.method=lora ⇒ model.method: there is no lora; there are
fit --model.method=FCLORA ⇒ model.method: there is no FCLORA; did you mean FCLoRA?
fit --model.method=3 ⇒ model.method: there is no 3; there are
fit --model.method=[LoRA] ⇒ model.method: there is no ['LoRA']; there are
fit --model.method.foo=3 ⇒ model.method.foo: FCLoRA has no such setting; there are ball, dropout, f
fit --model.method.rnak=3 ⇒ model.method.rnak: FCLoRA has no such setting; did you mean rank?
fit --model.method.rank=abc ⇒ model.method.rank: 'abc' is not a whole number
fit --model.method.rank= ⇒ model.method.rank: '' is not a whole number
fit --model.method.rank=1.5 ⇒ model.method.rank: '1.5' is not a whole number
fit --model.method.rank=null ⇒ model.method.rank: 'None' is not a whole number
fit --model.method.rank=0 ⇒ rank must be at least 1, not 0
fit --model.method.rank=-1 ⇒ rank must be at least 1, not -1
fit --model.method.dropout=1 ⇒ dropout must be in [0, 1), not 1.0
fit --model.method.dropout=-0.1 ⇒ dropout must be in [0, 1), not -0.1
fit --model.method.dropout=nan ⇒ model.method.dropout: 'nan' is not a finite number
fit --model.method.dropout=abc ⇒ model.method.dropout: 'abc' is not a finite number
fit --model.method.seed=-1 ⇒ seed must be at least 0 and below 2^63, not -1
fit --model.method.seed=abc ⇒ model.method.seed: 'abc' is not a whole number
fit --model.method.seed=1e40 ⇒ model.method.seed: '1e40' is not a whole number
fit --model.method.seed=99999999999999999999999999 ⇒ seed must be at least 0 and below 2^63, not 99999999999999999999999999
fit --model.method.head_lr=-1 ⇒ head_lr must be finite and above 0, not -1.0
fit --model.method.head_lr=0 ⇒ head_lr must be finite and above 0, not 0.0
fit --model.method.head_lr=nan ⇒ model.method.head_lr: 'nan' is not a finite number
fit --model.method.head_lr=inf ⇒ model.method.head_lr: 'inf' is not a finite number
fit --model.method.target_modules=[3] ⇒ model.method.target_modules: '[3]' is not text or null
fit --model.method.sigma_bar=[1] ⇒ model.method.sigma_bar: '[1]' is not a finite number or text or a mappin
fit --model.method.gamma=-1 ⇒ gamma must be at least 0, not -1.0
fit --model.method.gamma=nan ⇒ model.method.gamma: 'nan' is not a finite number
fit --model.method.gamma=abc ⇒ model.method.gamma: 'abc' is not a finite number
fit --model.method.gamma=inf ⇒ model.method.gamma: 'inf' is not a finite number
fit --model.method.sigma_lr=-1 ⇒ sigma_lr must be finite and above 0, not -1.0
fit --model.method.sigma_lr=0 ⇒ sigma_lr must be finite and above 0, not 0.0
fit --model.method.sigma_lr=inf ⇒ model.method.sigma_lr: 'inf' is not a finite number
fit --model.method.sigma_lr=nan ⇒ model.method.sigma_lr: 'nan' is not a finite number
fit --model.method.factor_lr=-1 ⇒ factor_lr must be finite and above 0, not -1.0
fit --model.method.factor_lr=0 ⇒ factor_lr must be finite and above 0, not 0.0
fit --model.method.orthogonality=qr ⇒ model.method.orthogonality: 'qr' is not decoupled, gradient, gram-schmid
fit --model.method.start=top ⇒ model.method.start: 'top' is not singular, zero
fit --model.method.sigma=free ⇒ sigma: free starts at 1; only start: zero leaves the model unchanged at
fit --model.method.principal_rank=-1 ⇒ principal_rank must be at least 0, not -1
fit --model.method.principal_rank=abc ⇒ model.method.principal_rank: 'abc' is not a whole number
fit --model.method.input_rank=-1 ⇒ input_rank must be at least 0, not -1
fit --model.method=LoRA --model.method.alpha=0 ⇒ alpha must be finite and above 0, not 0.0
fit --model.method=LoRA --model.method.alpha=-1 ⇒ alpha must be finite and above 0, not -1.0
fit --model.method=LoRA --model.method.alpha=nan ⇒ model.method.alpha: 'nan' is not a finite number or null
fit --model.method=LoRA --model.method.alpha=abc ⇒ model.method.alpha: 'abc' is not a finite number or null
fit --model.method=LoRAPlus --model.method.lr_ratio=0 ⇒ lr_ratio must be at least 1, not 0.0
fit --model.method=LoRAPlus --model.method.lr_ratio=-1 ⇒ lr_ratio must be at least 1, not -1.0
fit --model.method=LoRAPlus --model.method.lr_ratio=inf ⇒ model.method.lr_ratio: 'inf' is not a finite number
fit --model.method=HiPLoRA --model.method.budget=nan ⇒ model.method.budget: 'nan' is not a finite number
fit --model.method=HiPLoRA --model.method.budget=-1 ⇒ budget must be at least 0, not -1.0
fit --model.method=HiPLoRA --model.method.sensitivity=-1 ⇒ sensitivity must be at least 0, not -1.0
fit --model.method=HiPLoRA --model.method.sensitivity=inf ⇒ model.method.sensitivity: 'inf' is not a finite number
fit --model.method=HiPLoRA --model.method.delta_lr=0 ⇒ delta_lr must be finite and above 0, not 0.0
fit --model.method=HiPLoRA --model.method.project=perhaps ⇒ model.method.project: 'perhaps' is not true or false
fit --model.method=HiPLoRA --model.method.principal_rank=0 ⇒ principal_rank must be at least 1, not 0
fit --model.method=HiRA --model.method.reference=foo ⇒ model.method.reference: 'foo' is not weight, uniform, truncated, neighbo
fit --model.method=HiRA --model.method.reference_rank=-1 ⇒ reference: truncated and reference_rank belong together; give both or ne
fit --model.method=HiRA --model.method.rank=0 ⇒ rank must be at least 1, not 0
fit --model.method=HiLoRA --model.method.rank=0 ⇒ rank must be at least 1, not 0
fit --model.method=PiSSA --model.method.rank=0 ⇒ rank must be at least 1, not 0
fit --model.method=MoRA --model.method.rank=0 ⇒ rank must be at least 1, not 0
fit --model.method=DenseDelta --model.method.rank=3 ⇒ model.method: there is no DenseDelta; there are
fit --model.method=Peft --model.method.config=3 ⇒ model.method.config: '3' is not a mapping
fit --data=Foo ⇒ data: there is no Foo; there are
fit --data=LoRA ⇒ data: there is no LoRA; there are
fit --data=3 ⇒ data: there is no 3; there are
fit --data.foo=1 ⇒ data.foo: GLUE has no such setting; there are batch_size, eval_batch_siz
fit --data.task=mrcp ⇒ data.task: 'mrcp' is not cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte
fit --data.task=3 ⇒ data.task: '3' is not cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte
fit --data.batch_size=1.5 ⇒ data.batch_size: '1.5' is not a whole number
fit --data.batch_size=abc ⇒ data.batch_size: 'abc' is not a whole number
fit --data.eval_batch_size=-1 ⇒ eval_batch_size must be at least 1, not -1
fit --data.eval_batch_size=x ⇒ data.eval_batch_size: 'x' is not a whole number or null
fit --data.num_workers=-1 ⇒ num_workers must be at least 0, not -1
fit --data.num_workers=x ⇒ data.num_workers: 'x' is not a whole number
fit --data.seed=x ⇒ data.seed: 'x' is not a whole number
fit --data.prompt=a ⇒ data.prompt: GLUE has no such setting; there are batch_size, eval_batch_
fit --data=PromptedText ⇒ data: PromptedText needs prompt, answer; give --data.prompt
fit --ckpt_path=nowhere.ckpt ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
fit --ckpt_path=garbage.ckpt ⇒ checkpoint: garbage.ckpt can't be read as a checkpoint (it is none, or i
fit --ckpt_path=empty.ckpt ⇒ checkpoint: empty.ckpt is empty; give a .ckpt that fit wrote
fit --ckpt_path=text.ckpt ⇒ checkpoint: text.ckpt can't be read as a checkpoint (it is none, or its
fit --ckpt_path=https://example.org/last.ckpt ⇒ checkpoint: https://example.org/last.ckpt is an address; download the fi
fit --ckpt_path=s3://bucket/last.ckpt ⇒ checkpoint: s3://bucket/last.ckpt is an address; download the file, and
fit --ckpt_path= ⇒ checkpoint: there is no file ; give a .ckpt that fit wrote
fit --ckpt_path ⇒ argument --ckpt_path: expected one argument
validate --ckpt_path=nowhere.ckpt ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
validate --ckpt_path=garbage.ckpt ⇒ checkpoint: garbage.ckpt can't be read as a checkpoint (it is none, or i
validate --ckpt_path=last ⇒ ckpt_path: there is no last checkpoint (
validate --trainer.limit_val_batches=0 ⇒ trainer.limit_val_batches: 0 leaves nothing to validate; give more
validate --verbose=perhaps ⇒ verbose: 'perhaps' is not true or false
validate --foo ⇒ --foo: there is no such flag; see --help
validate --data.eval_batch_size=0 ⇒ eval_batch_size must be at least 1, not 0
test --ckpt_path=nowhere.ckpt ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
test --ckpt_path=garbage.ckpt ⇒ checkpoint: garbage.ckpt can't be read as a checkpoint (it is none, or i
test --trainer.limit_test_batches=0 ⇒ trainer.limit_test_batches: 0 leaves nothing to test; give more
test --foo=1 ⇒ --foo: there is no such flag; see --help
predict --ckpt_path=nowhere.ckpt ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
predict --ckpt_path=empty.ckpt ⇒ checkpoint: empty.ckpt is empty; give a .ckpt that fit wrote
predict --trainer.logger=false ⇒ predict: without a folder of the run's own, the predictions would be los
predict --return_predictions=perhaps ⇒ return_predictions: 'perhaps' is not true or false or null
predict --foo=1 ⇒ --foo: there is no such flag; see --help
"""

# Likewise; found when objects are made, a model loaded or data read.
ENCODER_LATER = """
fit --trainer.max_time=soon ⇒ `Timer(duration='soon')` is not a valid duration. Expected a string in t
fit --trainer.accelerator=gpuu ⇒ settings: You selected an invalid accelerator name: `accelerator='gpuu'`
fit --trainer.strategy=foo ⇒ settings: You selected an invalid strategy name: `strategy='foo'`. It mu
fit --trainer.devices=x ⇒ settings: `devices` selected with `CPUAccelerator` should be an int > 0.
fit --trainer.devices=0 ⇒ `Trainer(devices='0')` value is not a valid input using cpu accelerator.
fit --trainer.devices=[] ⇒ `Trainer(devices=[])` value is not a valid input using cpu accelerator.
fit --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.save_top_k=-2 ⇒ Invalid value for save_top_k=-2. Must be >= -1
fit --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/lss ⇒ EarlyStopping: val/lss is not logged; there are sigma_max, train/loss, t
fit --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.mode=up ⇒ `mode` can be min, max, got up
fit --trainer.callbacks+=RetentionMonitor ⇒ retention: nothing to measure on; give corpora, or without a head to fit
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[nowhere.txt] ⇒ data.path: there is no file nowhere.txt
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[text.txt] --trainer.callbacks.limit=-1 ⇒ retention: limit is at least 1, not -1
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[text.txt] --trainer.callbacks.batch_size=0 ⇒ retention: batch_size is at least 1, not 0
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[text.txt] --trainer.callbacks.max_length=0 ⇒ retention: max_length is at least 1, not 0
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[text.txt] --trainer.callbacks.every_n_epochs=-1 ⇒ every_n_epochs must be at least 0, not -1
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[text.txt] --trainer.callbacks.every_n_steps=-1 ⇒ every_n_steps must be at least 0, not -1
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[empty.txt] ⇒ data.path: empty.txt has fewer than two lines of text
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.corpora=[latin.txt] ⇒ latin.txt, line 1 can't be read: it is not UTF-8; convert the file
fit --trainer.callbacks+=RetentionMonitor --trainer.callbacks.sts=nowhere ⇒ data.path: nowhere is neither a local folder nor to be had from the hub
fit --trainer.callbacks+=LMEvalCallback --trainer.callbacks.tasks=[arc_easy] ⇒ LMEvalCallback scores decoders, of CausalLM, not SequenceClassification
fit --trainer.logger.save_dir=/proc/nowhere ⇒ trainer: the run's folder can't be written: [Errno 2] No such file or di
fit --trainer.logger.save_dir=empty.txt ⇒ trainer: the run's folder can't be written: [Errno 20] Not a directory:
fit --trainer.gradient_clip_val=-1 ⇒ trainer.gradient_clip_val must be at least 0, not -1
fit --trainer.accumulate_grad_batches=0 ⇒ trainer.accumulate_grad_batches must be at least 1, not 0
fit --trainer.val_check_interval=1000 ⇒ trainer: `val_check_interval` (1000) must be less than or equal to the n
fit --trainer.val_check_interval=abc ⇒ Invalid time format for `val_check_interval`: 'abc'. Expected 'DD:HH:MM:
fit --trainer.check_val_every_n_epoch=-1 ⇒ trainer.check_val_every_n_epoch must be at least 1, not -1
fit --trainer.limit_train_batches=-1 ⇒ You have passed invalid value -1 for limit_train_batches, it has to be i
fit --trainer.max_epochs=0 ⇒ trainer.max_epochs: 0 leaves nothing to fit; give more
fit --trainer.max_epochs=-5 ⇒ `max_epochs` must be a non-negative integer or -1. You passed in -5.
fit --trainer.log_every_n_steps=-1 ⇒ trainer.log_every_n_steps must be at least 0, not -1
fit --trainer.num_sanity_val_steps=-2 ⇒ trainer.num_sanity_val_steps must be at least 0, not -2
fit --trainer.overfit_batches=-1 ⇒ You have passed invalid value -1 for overfit_batches, it has to be in [0
fit --trainer.overfit_batches=1.5 ⇒ You have passed invalid value 1.5 for overfit_batches, it has to be in [
fit --trainer.fast_dev_run=-1 ⇒ fast_dev_run=-1 is not a valid configuration. It should be >= 0.
fit --trainer.profiler=slow ⇒ When passing string value for the `profiler` parameter of `Trainer`, it
fit --trainer.enable_checkpointing=false ⇒ Trainer was configured with `enable_checkpointing=False` but found `Mode
fit --trainer.barebones=true ⇒ settings: `Trainer(barebones=True, logger=<lightning.pytorch.loggers.ten
fit --trainer.reload_dataloaders_every_n_epochs=-1 ⇒ `reload_dataloaders_every_n_epochs` should be an int >= 0, got -1.
fit --trainer.accelerator=gpu ⇒ No supported gpu backend found!
fit --trainer.accelerator=tpu ⇒ settings: Requirement 'torch_xla>=1.13' not met. HINT: Try running `pip
fit --trainer.precision=16-true ⇒ --trainer.precision 16-true rounds factors out of the set that holds the
fit --trainer.precision=bf16-true ⇒ --trainer.precision bf16-true rounds factors out of the set that holds t
fit --trainer.precision=transformer-engine ⇒ settings: Requirement 'transformer_engine>=0.11.0' not met. HINT: Try ru
fit --trainer.strategy=fsdp ⇒ settings: The strategy `fsdp` requires a GPU accelerator, but received `
fit --model.backbone= ⇒ backbone: '' has no config.json; give a folder written by save_pretraine
fit --model.backbone=./nowhere ⇒ backbone: there is no folder ./nowhere; give a folder in Hugging Face fo
fit --model.backbone=someone/nothing ⇒ backbone: someone/nothing is neither a local folder nor to be had from t
fit --model.backbone=empty.txt ⇒ backbone: empty.txt is neither a local folder nor to be had from the hub
fit --model.backbone=. ⇒ backbone: '.' has no config.json; give a folder written by save_pretrain
fit --model.num_labels=0 ⇒ num_labels must be at least 1, not 0
fit --model.num_labels=3 ⇒ model.num_labels: 3, and the data have 2 classes; leave it out
fit --model.metrics=[bleu] ⇒ metrics: bleu unknown; known are accuracy, f1, matthews, pearson, spearm
fit --model.label_names=[a] ⇒ split train: its labels are numbers, and the classes are called a; write
fit --model.lr_scheduler=foo ⇒ lr_scheduler: there is no 'foo'; there are constant, constant_with_warmu
fit --model.lr_scheduler= ⇒ lr_scheduler: there is no ''; there are constant, constant_with_warmup,
fit --model.lr_scheduler=3 ⇒ lr_scheduler: there is no '3'; there are constant, constant_with_warmup,
fit --model.lr_scheduler=cosine_with_min_lr ⇒ lr_scheduler: cosine_with_min_lr: One of min_lr or min_lr_rate should be
fit --model.lr_scheduler=reduce_lr_on_plateau ⇒ lr_scheduler: reduce_lr_on_plateau follows a metric; give a schedule ove
fit --model.lr_scheduler=warmup_stable_decay ⇒ lr_scheduler: warmup_stable_decay: get_wsd_schedule() missing 1 required
fit --model.lr_scheduler=greedy ⇒ lr_scheduler: greedy follows a metric; give a schedule over steps
fit --model.lr_scheduler=constant --model.warmup_steps=3 ⇒ warmup_steps: lr_scheduler constant has none; give constant_with_warmup
fit --model.warmup_steps=-5 ⇒ warmup_steps must be finite and not negative, not -5.0
fit --model.warmup_steps=-0.1 ⇒ warmup_steps must be finite and not negative, not -0.1
fit --model.warmup_steps=1000000000 ⇒ warmup_steps 1000000000.0 is above the run's 4 optimizer steps, in which
fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr=-1 ⇒ model.optimizer: Invalid learning rate: -1.0; give other settings of it,
fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr=0 ⇒ model.optimizer: a learning rate of 0.0 trains nothing; give --model.opt
fit --model.optimizer=torch.optim.AdamW --model.optimizer.weight_decay=-1 ⇒ model.optimizer: Invalid weight_decay value: -1.0; give other settings o
fit --model.optimizer=torch.optim.AdamW --model.optimizer.betas=[2,2] ⇒ model.optimizer: Invalid beta parameter at index 0: 2.0; give other sett
fit --model.optimizer=torch.optim.AdamW --model.optimizer.eps=-1 ⇒ model.optimizer: Invalid epsilon value: -1.0; give other settings of it,
fit --model.optimizer=torch.optim.AdamW --model.optimizer.fused=true --model.optimizer.foreach=true ⇒ model.optimizer: `fused` and `foreach` cannot be `True` together.; give
fit --model.optimizer=SGD --model.optimizer.momentum=-1 ⇒ model.optimizer: Invalid momentum value: -1.0; give other settings of it
fit --model.optimizer=LBFGS ⇒ model.optimizer: LBFGS doesn't support per-parameter options (parameter
fit --model.optimizer=SparseAdam ⇒ model.optimizer: SparseAdam is for sparse gradients, which adapters have
fit --model.method=torch.nn.Linear ⇒ model.method: there is no torch.nn.Linear; there are
fit --model.method=lit_spectral.methods.Method ⇒ backbone: it can't read rows padded with '[PAD]' ('NoneType' object is n
fit --model.method.rank=33 ⇒ encoder.layer.0.attention.self.query: rank 33 is above the largest a 32
fit --model.method.rank=1000000 ⇒ encoder.layer.0.attention.self.query: rank 1000000 is above the largest
fit --model.method.target_modules=[quary] ⇒ target_modules: 'quary' matches nothing in this model; its linear maps e
fit --model.method.target_modules=[] ⇒ target_modules: [] matches nothing in this model; its linear maps end in
fit --model.method.target_modules= ⇒ target_modules: '' matches nothing in this model; its linear maps end in
fit --model.method.target_modules=( ⇒ target_modules: '(' is no regular expression: missing ), unterminated su
fit --model.method.target_modules=[(] ⇒ target_modules: '(' matches nothing in this model; its linear maps end i
fit --model.method.target_modules=3 ⇒ target_modules: '3' matches nothing in this model; its linear maps end i
fit --model.method.target_modules=[embeddings] ⇒ target_modules matches embeddings, a RobertaEmbeddings, which is not a l
fit --model.method.target_modules=[LayerNorm] ⇒ target_modules matches embeddings.LayerNorm, a LayerNorm, which is not a
fit --model.method.target_modules=[classifier.dense] ⇒ target_modules: 'classifier.dense' matches nothing in this model; its li
fit --model.method.sigma_bar=-1.0 ⇒ encoder.layer.0.attention.self.query: a bound on singular values must be
fit --model.method.sigma_bar=0 ⇒ encoder.layer.0.attention.self.query: a bound on singular values must be
fit --model.method.sigma_bar=.inf ⇒ encoder.layer.0.attention.self.query: a bound on singular values must be
fit --model.method.sigma_bar=nan ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar=q5 ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar={quantile:2} ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar={quantile:-0.1} ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar={quantile:nan} ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar={quantle:0.5} ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar={quantile:abc} ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.sigma_bar=null ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.input_rank=40 ⇒ encoder.layer.0.attention.self.query: rank + input_rank = 48 is above th
fit --model.method.ball=-1 ⇒ encoder.layer.0.attention.self.query: a bound on singular values must be
fit --model.method.ball=0 ⇒ encoder.layer.0.attention.self.query: a bound on singular values must be
fit --model.method.ball=nan ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method.ball=q9 ⇒ encoder.layer.0.attention.self.query: a bound is a number, q1, q2, q3, q
fit --model.method=HiRA --model.method.reference=truncated --model.method.reference_rank=1000 ⇒ encoder.layer.0.attention.self.query: reference_rank 1000 is above the l
fit --model.method=MiLoRA --model.method.rank=100 ⇒ encoder.layer.0.attention.self.query: rank 100 is above the largest a 32
fit --model.method=Peft ⇒ method.config: peft_type None unknown; peft has ADALORA, ADAMSS, ADAPTIO
fit --model.method=Peft --model.method.config={} ⇒ method.config: peft_type None unknown; peft has ADALORA, ADAMSS, ADAPTIO
fit --model.method=Peft --model.method.config={"peft_type":"FOO"} ⇒ method.config: peft_type 'FOO' unknown; peft has ADALORA, ADAMSS, ADAPTI
fit --model.method=Peft --model.method.config={"peft_type":"LORA","r":0} ⇒ method.config: `r` should be a positive integer value but the value pass
fit --model.method=Peft --model.method.config={"peft_type":"LORA","foo":1} ⇒ method.config: LoraConfig.__init__() got an unexpected keyword argument
fit --model.method=Peft --model.method.config={"peft_type":"LORA","r":"many"} ⇒ method.config: '<=' not supported between instances of 'str' and 'int'
fit --model.method=Peft --model.method.config={"peft_type":"LORA","target_modules":["quary"]} ⇒ method.config: Target modules {'quary'} not found in the base model. Ple
fit --model.method=Peft --model.method.config={"r":8} ⇒ method.config: peft_type None unknown; peft has ADALORA, ADAMSS, ADAPTIO
fit --data.path= ⇒ data.path: . has no file for split train (train.jsonl, .json, .parquet o
fit --data.path=./nowhere ⇒ data.path: there is no folder ./nowhere
fit --data.path=someone/nothing ⇒ data.path: someone/nothing is neither a local folder nor to be had from
fit --data.path=rows.jsonl ⇒ data.path: rows.jsonl is neither a local folder nor to be had from the h
fit --data.path=. ⇒ data.path: . has no file for split train (train.jsonl, .json, .parquet o
fit --data.path=https://example.org/rows ⇒ data.path: there is no folder https://example.org/rows
fit --data.batch_size=0 ⇒ batch_size must be at least 1, not 0
fit --data.batch_size=-1 ⇒ batch_size must be at least 1, not -1
fit --data.batch_size=null ⇒ data: batch_size, max_length, num_workers and seed are whole numbers, no
fit --data.eval_batch_size=0 ⇒ eval_batch_size must be at least 1, not 0
fit --data.max_length=0 ⇒ max_length must be at least 1, not 0
fit --data.max_length=-1 ⇒ max_length must be at least 1, not -1
fit --data.max_length=2 ⇒ data.max_length: 2 leaves no room beside the tokenizer's 3 special token
fit --data.seed=-1 ⇒ seed must be at least 0, not -1
fit --data.tokenizer=./nowhere ⇒ data.tokenizer: there is no folder ./nowhere; give a folder in Hugging F
fit --data.tokenizer= ⇒ data.tokenizer: '' has no config.json; give a folder written by save_pre
fit --data.tokenizer=someone/nothing ⇒ data.tokenizer: someone/nothing is neither a local folder nor to be had
fit --data=PromptedText --data.prompt={a} --data.answer={b} ⇒ data: PromptedText is not for SequenceClassification, which takes Senten
fit --data=SQuAD ⇒ data: SQuAD is not for SequenceClassification, which takes SentenceDataM
fit --data=MaskedText ⇒ data: MaskedText is not for SequenceClassification, which takes Sentence
fit --ckpt_path=. ⇒ checkpoint: . is a folder; give a .ckpt that fit wrote
fit --ckpt_path=last ⇒ ckpt_path: there is no last checkpoint (
fit --ckpt_path=best ⇒ ckpt_path: best is of a fit in the same process, and there was none; giv
fit --ckpt_path=hpc ⇒ ckpt_path: there is no hpc checkpoint in
validate ⇒ validate: classifier.dense.bias and 3 more weights start at random and w
validate --ckpt_path=best ⇒ ckpt_path: best is of a fit in the same process, and there was none; giv
test ⇒ test: classifier.dense.bias and 3 more weights start at random and were
predict ⇒ predict: classifier.dense.bias and 3 more weights start at random and we
"""

# After those of CausalLM on prompted rows.
DECODER = """
fit --data.prompt={quest ⇒ data.prompt: '{quest': expected '}' before end of string; a column is {c
fit --data.prompt={nothing} ⇒ split train: no column nothing; its columns are question, answer
fit --data.prompt={} ⇒ data.prompt: '{}': between braces stands the name of a column and nothin
fit --data.prompt={question!r} ⇒ data.prompt: '{question!r}': between braces stands the name of a column
fit --data.prompt=question ⇒ data.prompt: question is a column's name; write '{question}'
fit --data.answer= ⇒ prompts/train.jsonl, line 1: the answer is empty; leave the row out, or
fit --data.answer={nothing} ⇒ split train: no column nothing; its columns are question, answer
fit --data.answer=} ⇒ data.answer: '}': Single '}' encountered in format string; a column is {
fit --data.input={nothing} ⇒ split train: no column nothing; its columns are question, answer
fit --data.template=chat ⇒ data.template: the tokenizer has no chat template; give alpaca, llm-adap
fit --data.template=alpacca ⇒ data.template: 'alpacca' is not plain, alpaca, llm-adapters, chat
fit --data.template=3 ⇒ data.template: '3' is not plain, alpaca, llm-adapters, chat
fit --data.loss_on=prompt ⇒ data.loss_on: 'prompt' is not answer, all
fit --data.packing=maybe ⇒ data.packing: 'maybe' is not true or false
fit --data.packing=3 ⇒ data.packing: '3' is not true or false
fit --data.too_long=drop ⇒ data.too_long: 'drop' is not cut, skip, error
fit --data.empty_answer=keep ⇒ data.empty_answer: 'keep' is not error, skip
fit --data.validation_rows=0 ⇒ validation_rows must be at least 1, not 0
fit --data.validation_rows=-1 ⇒ validation_rows must be at least 1, not -1
fit --data.validation_rows=x ⇒ data.validation_rows: 'x' is not a whole number
fit --data.max_length=1 ⇒ max_length must be at least 2 and finite, not 1
fit --data.max_length=-5 ⇒ max_length must be at least 1, not -5
fit --data.batch_size=0 ⇒ batch_size must be at least 1, not 0
fit --data.path=nowhere.jsonl ⇒ data.path: nowhere.jsonl is neither a local folder nor to be had from th
fit --data.path=broken.jsonl ⇒ data.path: broken.jsonl is neither a local folder nor to be had from the
fit --data.path=list.jsonl ⇒ data.path: list.jsonl is neither a local folder nor to be had from the h
fit --data.path=blank.jsonl ⇒ data.path: blank.jsonl is neither a local folder nor to be had from the
fit --data.path=empty.txt ⇒ data.path: empty.txt is neither a local folder nor to be had from the hu
fit --data=GLUE ⇒ data: GLUE is not for CausalLM, which takes PromptedText or TextWindows
fit --data=SQuAD ⇒ data: SQuAD is not for CausalLM, which takes PromptedText or TextWindows
fit --data=MaskedText ⇒ data: MaskedText is not for CausalLM, which takes PromptedText or TextWi
fit --data=TextWindows --data.path=text.txt ⇒ data: TextWindows only measures; use `validate`, or fit with PromptedTex
validate --data=TextWindows --data.path=text.txt --data.limit=0 ⇒ limit must be at least 1, not 0
validate --data=TextWindows --data.path=empty.txt --data.max_length=40 ⇒ data.path: empty.txt has 0 tokens, fewer than the 39 of a window; give a
validate --data=TextWindows --data.path=latin.txt --data.max_length=40 ⇒ latin.txt, line 1 can't be read: it is not UTF-8; convert the file
validate --data=TextWindows --data.path=nowhere.txt --data.max_length=40 ⇒ data.path: there is no file nowhere.txt
fit --data=Math --data.max_new_tokens=0 ⇒ max_new_tokens must be at least 1, not 0
fit --data=Math --data.limit=0 ⇒ limit must be at least 1, not 0
fit --data=Math --data.path=. ⇒ data.path: . has no file for split train (train.jsonl, .json, .parquet o
fit --data=Commonsense --data.path=. ⇒ data.path: . has no file for split train (train.jsonl, .json, .parquet o
fit --data=Commonsense --data.sets=[foo] ⇒ data.sets: there is no set foo; there are boolq, piqa, social_i_qa, hell
fit --model=QuestionAnswering --data=GLUE ⇒ data: GLUE is not for QuestionAnswering, which takes SQuAD and what deri
fit --model=SequenceClassification ⇒ data: PromptedText is not for SequenceClassification, which takes Senten
fit --model=MaskedLM ⇒ data: PromptedText is not for MaskedLM, which takes MaskedText and what
fit --model.num_labels=2 ⇒ model.num_labels: CausalLM has no such setting; there are backbone, lr_s
fit --model.method.target_modules=[query] ⇒ target_modules: 'query' matches nothing in this model; its linear maps e
fit --model.method=LoRA --model.method.rank=33 ⇒ layers.0.self_attn.q_proj: rank 33 is above the largest a 32 x 32 matrix
predict ⇒ predict generates answers; give data with test sets to answer, such as M
"""

# After those of QuestionAnswering on SQuAD's form.
QUESTIONS = """
fit --data.stride=-1 ⇒ stride must be at least 0, not -1
fit --data.stride=1000 ⇒ data.max_length: a window of 48 tokens has -19 left beside a question of
fit --data.stride=x ⇒ data.stride: 'x' is not a whole number
fit --data.max_query_length=0 ⇒ max_query_length must be at least 1, not 0
fit --data.max_query_length=-1 ⇒ max_query_length must be at least 1, not -1
fit --data.max_length=1 ⇒ data.max_length: a window of 1 tokens has -66 left beside a question of
fit --data.max_length=8 ⇒ data.max_length: a window of 8 tokens has -59 left beside a question of
fit --data.version_2=perhaps ⇒ data.version_2: 'perhaps' is not true or false
fit --data.skip_misplaced=3 ⇒ data.skip_misplaced: '3' is not true or false
fit --data.path=./nowhere ⇒ data.path: there is no folder ./nowhere
fit --model.max_answer_length=0 ⇒ max_answer_length must be at least 1, not 0
fit --model.max_answer_length=-1 ⇒ max_answer_length must be at least 1, not -1
fit --model.max_answer_length=x ⇒ model.max_answer_length: 'x' is not a whole number
fit --model.null_threshold=nan ⇒ model.null_threshold: 'nan' is not a finite number
fit --model.null_threshold=x ⇒ model.null_threshold: 'x' is not a finite number
fit --model.null_threshold=inf ⇒ model.null_threshold: 'inf' is not a finite number
fit --data=GLUE ⇒ data: GLUE is not for QuestionAnswering, which takes SQuAD and what deri
fit --data=PromptedText --data.path=rows.jsonl --data.prompt={sentence1} --data.answer={label} ⇒ data: PromptedText is not for QuestionAnswering, which takes SQuAD and w
fit --model=CausalLM ⇒ data: SQuAD is not for CausalLM, which takes PromptedText or TextWindows
fit --model=MaskedLM ⇒ data: SQuAD is not for MaskedLM, which takes MaskedText and what derives
fit --model=SequenceClassification ⇒ data: SQuAD is not for SequenceClassification, which takes SentenceDataM
"""

# After those of MaskedLM on a text.
MASKED_WORDS = """
fit --data.mask_fraction=0 ⇒ mask_fraction lies between 0 and 1, and validation_fraction above 0 and
fit --data.mask_fraction=1 ⇒ mask_fraction lies between 0 and 1, and validation_fraction above 0 and
fit --data.mask_fraction=-1 ⇒ mask_fraction lies between 0 and 1, and validation_fraction above 0 and
fit --data.mask_fraction=nan ⇒ data.mask_fraction: 'nan' is not a finite number
fit --data.mask_fraction=x ⇒ data.mask_fraction: 'x' is not a finite number
fit --data.validation_fraction=0 ⇒ mask_fraction lies between 0 and 1, and validation_fraction above 0 and
fit --data.validation_fraction=1 ⇒ data.validation_fraction: 1 leaves nothing to train on; use validate, or
fit --data.validation_fraction=2 ⇒ mask_fraction lies between 0 and 1, and validation_fraction above 0 and
fit --data.validation_fraction=nan ⇒ data.validation_fraction: 'nan' is not a finite number
fit --data.limit=1 ⇒ limit must be at least 2 and finite, not 1
fit --data.limit=-1 ⇒ limit must be at least 2, not -1
fit --data.path=nowhere.txt ⇒ data.path: there is no file nowhere.txt
fit --data.path=empty.txt ⇒ data.path: empty.txt has fewer than two lines of text
fit --data.path=latin.txt ⇒ latin.txt, line 1 can't be read: it is not UTF-8; convert the file
fit --data=GLUE ⇒ data: GLUE is not for MaskedLM, which takes MaskedText and what derives
fit --model=CausalLM ⇒ data: MaskedText is not for CausalLM, which takes PromptedText or TextWi
predict ⇒ `Trainer.predict` requires `forward` method to run.
test ⇒ No `test_step()` method defined to run `Trainer.test`.
"""

# Whole commands; CKPT, CONFIG and BACKBONE stand for paths.
VERBS = """
nothing ⇒ no subcommand is given; there are fit, validate, test, predict, quicksta
fitt ⇒ there is no subcommand fitt; did you mean fit?
--fit ⇒ --fit: there is no such flag; there are --config, --help, --print_config
fit-all ⇒ there is no subcommand fit-all; there are compare, evaluate, fit, humane
quickstart nowhere.yaml ⇒ config: there is no file nowhere.yaml in
quickstart empty.yaml ⇒ config: empty.yaml holds no settings; write sections such as `model:`, `
quickstart unclosed.yaml ⇒ config: unclosed.yaml, line 2: not YAML: expected ',' or ']', but got ':
quickstart binary.yaml ⇒ config: binary.yaml is not text in UTF-8; give a YAML file
quickstart . ⇒ config: . is a folder; give a file
quickstart --foo ⇒ quickstart: there is no --foo; there are --help, -h
quickstart a b ⇒ quickstart: there is no b; there are --help, -h
quickstart --model.method.rank=4 ⇒ quickstart: there is no --model.method.rank; there are --help, -h
humaneval ⇒ humaneval: the following arguments are required: samples
humaneval nowhere.jsonl ⇒ humaneval: nowhere.jsonl can't be read: [Errno 2] No such file or direct
humaneval samples.jsonl --foo ⇒ humaneval: there is no --foo; there are --allow_code_execution, --help,
humaneval samples.jsonl --timeout=abc ⇒ humaneval: argument --timeout: invalid float value: 'abc'
humaneval samples.jsonl --timeout=-1 ⇒ timeout must be at least 0.1, not -1.0
humaneval samples.jsonl --timeout=0 ⇒ timeout must be at least 0.1, not 0.0
humaneval samples.jsonl --timeout=nan ⇒ timeout must be at least 0.1, not nan
humaneval samples.jsonl --timeout=1e-9 ⇒ timeout must be at least 0.1 and finite, not 1e-09
humaneval samples.jsonl --path=nowhere ⇒ data.path: nowhere is neither a local folder nor to be had from the hub
humaneval samples.jsonl --results=. ⇒ humaneval: --results: . is a folder; give a file
humaneval samples.jsonl --results=/proc/x.jsonl ⇒ humaneval: --results:
humaneval samples.jsonl --results=nowhere/x.jsonl ⇒ data.path: openai/openai_humaneval is neither a local folder nor to be h
humaneval samples.jsonl ⇒ data.path: openai/openai_humaneval is neither a local folder nor to be h
humaneval broken.jsonl ⇒ humaneval: broken.jsonl, line 1 is not JSON: Expecting ',' delimiter: li
humaneval other.jsonl ⇒ humaneval: other.jsonl, line 1 is not {"task_id": TEXT, "completion": TE
humaneval numbers.jsonl ⇒ humaneval: numbers.jsonl, line 1 is not {"task_id": TEXT, "completion":
humaneval list.jsonl ⇒ humaneval: list.jsonl, line 1 is not {"task_id": TEXT, "completion": TEX
humaneval blank.jsonl ⇒ humaneval: blank.jsonl holds no samples
humaneval empty.txt ⇒ humaneval: empty.txt holds no samples
humaneval binary.yaml ⇒ humaneval: binary.yaml can't be read: 'utf-8' codec can't decode byte 0x
humaneval . ⇒ humaneval: . can't be read: [Errno 21] Is a directory: '.'
humaneval samples.jsonl samples.jsonl ⇒ humaneval: there is no samples.jsonl; there are --allow_code_execution,
retain ⇒ retain: the following arguments are required: --checkpoint
retain --checkpoint ⇒ retain: argument --checkpoint: expected one argument
retain --checkpoint=nowhere.ckpt ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
retain --checkpoint=garbage.ckpt ⇒ checkpoint: garbage.ckpt can't be read as a checkpoint (it is none, or i
retain --checkpoint=empty.ckpt ⇒ checkpoint: empty.ckpt is empty; give a .ckpt that fit wrote
retain --checkpoint=text.ckpt ⇒ checkpoint: text.ckpt can't be read as a checkpoint (it is none, or its
retain --checkpoint=. ⇒ checkpoint: . is a folder; give a .ckpt that fit wrote
retain --checkpoint=https://example.org/last.ckpt ⇒ checkpoint: https://example.org/last.ckpt is an address; download the fi
retain --checkpoint=CKPT --foo ⇒ retain: there is no --foo; there are --backbone, --batch_size, --bf16, -
retain --checkpoint=CKPT --corpra=text.txt ⇒ retain: there is no --corpra; did you mean --corpora?
retain --checkpoint=CKPT --corpora=nowhere.txt ⇒ data.path: there is no file nowhere.txt
retain --checkpoint=CKPT --corpora=empty.txt ⇒ data.path: empty.txt has fewer than two lines of text
retain --checkpoint=CKPT --corpora=latin.txt ⇒ latin.txt, line 1 can't be read: it is not UTF-8; convert the file
retain --checkpoint=CKPT --corpora text.txt text.txt ⇒ corpora: text.txt and text.txt are both named text; give NAME=text.txt
retain --checkpoint=CKPT --corpora ⇒ retain: argument --corpora: expected at least one argument
retain --checkpoint=CKPT --corpora=text.txt --limit=-1 ⇒ limit must be at least 0, not -1
retain --checkpoint=CKPT --corpora=text.txt --limit=abc ⇒ retain: argument --limit: invalid int value: 'abc'
retain --checkpoint=CKPT --corpora=text.txt --max_length=0 ⇒ max_length must be at least 1, not 0
retain --checkpoint=CKPT --corpora=text.txt --max_length=-1 ⇒ max_length must be at least 1, not -1
retain --checkpoint=CKPT --corpora=text.txt --batch_size=0 ⇒ batch_size must be at least 1, not 0
retain --checkpoint=CKPT --corpora=text.txt --batch_size=-1 ⇒ batch_size must be at least 1, not -1
retain --checkpoint=CKPT --corpora=text.txt --batch_size=x ⇒ retain: argument --batch_size: invalid int value: 'x'
retain --checkpoint=CKPT --corpora=text.txt --device=foo ⇒ device: foo can't be used: Expected one of cpu, cuda, ipu, xpu, mkldnn,
retain --checkpoint=CKPT --corpora=text.txt --device=cuda ⇒ device: cuda can't be used: Torch not compiled with CUDA enabled
retain --checkpoint=CKPT --corpora=text.txt --output_path=. ⇒ retain: --output_path: . is a folder; give a file
retain --checkpoint=CKPT --corpora=text.txt --output_path=/proc/x.json ⇒ retain: --output_path:
retain --checkpoint=CKPT --corpora=text.txt --backbone=nowhere.d ⇒ backbone: nowhere.d is neither a local folder nor to be had from the hub
retain --checkpoint=CKPT --sts=nowhere.d ⇒ data.path: nowhere.d is neither a local folder nor to be had from the hub
retain --checkpoint=CKPT --sts=. ⇒ data.path: . has no file for split validation (validation.jsonl, .json,
retain --checkpoint=CKPT --tasks=nothing ⇒ tasks: the harness scores decoders alone, not SequenceClassification; gi
retain --checkpoint=CKPT --tasks=arc_easy ⇒ tasks: the harness scores decoders alone, not SequenceClassification; gi
retain --checkpoint=CKPT --leave_out=arc_easy ⇒ retain: --leave_out arc_easy is none of --tasks
retain --checkpoint=CKPT --tasks=arc_easy --leave_out=arc_easy ⇒ retain: --leave_out names every task; give one that the model wasn't tra
retain --checkpoint=CKPT --tasks=arc_easy --num_fewshot=x ⇒ retain: argument --num_fewshot: invalid int value: 'x'
retain --checkpoint=CKPT ⇒ retention: nothing to measure on; give corpora, or without a head to fit
evaluate ⇒ tasks: none given; this package's benchmarks are commonsense, commonsens
compare --config ⇒ compare: argument --config: expected one argument
compare --config=nowhere.yaml ⇒ config: there is no file nowhere.yaml in
compare --config=empty.yaml ⇒ config: empty.yaml holds no settings; write sections such as `model:`, `
compare --config=unclosed.yaml ⇒ config: unclosed.yaml, line 2: not YAML: expected ',' or ']', but got ':
compare --config=binary.yaml ⇒ config: binary.yaml is not text in UTF-8; give a YAML file
compare --config=CONFIG --methods ⇒ compare: argument --methods: expected at least one argument
compare --config=CONFIG --methods Foo ⇒ compare: there is no method Foo; there are SORSA, BitFit, FCLoRA, FullFi
compare --config=CONFIG --methods lora ⇒ compare: there is no method lora; there are SORSA, BitFit, FCLoRA, FullF
compare --config=CONFIG --methods LoRA LoRA ⇒ compare: --methods names one twice; sweep its settings instead, as in --
compare --config=CONFIG --methods LoRA FCLoRA --seeds ⇒ compare: argument --seeds: expected at least one argument
compare --config=CONFIG --methods LoRA FCLoRA --seeds x ⇒ compare: argument --seeds: invalid int value: 'x'
compare --config=CONFIG --methods LoRA FCLoRA --seeds -1 ⇒ compare: --seeds are 0 or more and below 2^32, not -1
compare --config=CONFIG --methods LoRA FCLoRA --seeds 99999999999999 ⇒ compare: --seeds are 0 or more and below 2^32, not 99999999999999
compare --config=CONFIG --methods LoRA FCLoRA --corpora nowhere.txt ⇒ data.path: there is no file nowhere.txt
compare --config=CONFIG --methods LoRA FCLoRA --corpora empty.txt ⇒ data.path: empty.txt holds no text
compare --config=CONFIG --methods LoRA FCLoRA --corpora latin.txt ⇒ latin.txt, line 1 can't be read: it is not UTF-8; convert the file
compare --config=CONFIG --methods LoRA FCLoRA --corpora text.txt text.txt ⇒ corpora: text.txt and text.txt are both named text; give NAME=text.txt
compare --config=CONFIG --methods LoRA FCLoRA --sts nowhere.d ⇒ data.path: nowhere.d is neither a local folder nor to be had from the hub
compare --config=CONFIG --methods LoRA FCLoRA --limit -1 ⇒ limit must be at least 0, not -1
compare --config=CONFIG --methods LoRA FCLoRA --limit x ⇒ compare: argument --limit: invalid int value: 'x'
compare --config=CONFIG --methods LoRA FCLoRA --foo 3 ⇒ --foo: there is no such flag; see --help
compare --config=CONFIG --methods LoRA FCLoRA --model.foo 3 ⇒ model.foo: SequenceClassification has no such setting; there are backbon
compare --config=CONFIG --methods LoRA FCLoRA --model.method.foo 3 ⇒ compare: none of LoRA, FCLoRA has a setting foo
compare --config=CONFIG --methods LoRA FCLoRA --model.method.rank 0 ⇒ rank must be at least 1, not 0
compare --config=CONFIG --methods LoRA FCLoRA --model.method.rank abc ⇒ model.method.rank: 'abc' is not a whole number
compare --config=CONFIG --methods LoRA FCLoRA --model.method.rank 4,abc ⇒ model.method.rank: 'abc' is not a whole number
compare --config=CONFIG --methods LoRA FCLoRA --model.method LoRA ⇒ compare: --model.method is not for the runs; give --methods
compare --config=CONFIG --methods LoRA FCLoRA --seed_everything 3 ⇒ compare: --seed_everything is not for the runs; give --seeds
compare --config=CONFIG --methods LoRA FCLoRA --ckpt_path x ⇒ compare: --ckpt_path is not for the runs; give nothing: runs go on from
compare --config=CONFIG --methods LoRA FCLoRA --trainer.logger false ⇒ compare: --trainer.logger is not for the runs; give --output_folder
compare --config=CONFIG --methods LoRA FCLoRA --MiLoRA.rank 3 ⇒ --MiLoRA.rank: there is no such flag; see --help
compare --config=CONFIG --methods LoRA FCLoRA --LoRA.foo 3 ⇒ --foo: there is no such flag; see --help
compare --config=CONFIG --methods LoRA FCLoRA --output_folder text.txt ⇒ compare: --output_folder: text.txt/index.html can't be written (File exi
compare --config=CONFIG --methods LoRA FCLoRA --output_folder /proc/x ⇒ compare: --output_folder:
compare --config=CONFIG --methods LoRA FCLoRA --model.num_labels abc ⇒ model.num_labels: 'abc' is not a whole number or null
compare --config=CONFIG --methods LoRA FCLoRA --trainer.max_epochs x ⇒ trainer.max_epochs: 'x' is not a whole number or null
compare --config=CONFIG --methods LoRA FCLoRA --tasks nothing ⇒ --tasks: there is no such flag; see --help
evaluate --tasks ⇒ evaluate: argument --tasks/-t: expected at least one argument
evaluate --checkpoint=nowhere.ckpt --tasks=arc_easy ⇒ checkpoint: there is no file nowhere.ckpt; give a .ckpt that fit wrote
evaluate --checkpoint=garbage.ckpt --tasks=arc_easy ⇒ checkpoint: garbage.ckpt can't be read as a checkpoint (it is none, or i
evaluate --checkpoint=CKPT --tasks=local_arc --include_path=tasks ⇒ checkpoint:
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=nowhere.d ⇒ include_path: there is no folder nowhere.d; give one
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --foo ⇒ evaluate: there is no --foo; see --help
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --limit=-1 ⇒ limit must be finite and above 0, not -1.0
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --limit=abc ⇒ evaluate: argument --limit/-L: invalid float value: 'abc'
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --limit=0 ⇒ limit must be finite and above 0, not 0.0
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --batch_size=abc ⇒ evaluate: --batch_size is a number of at least 1, auto or auto:N, not ab
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --batch_size=-1 ⇒ evaluate: --batch_size is a number of at least 1, auto or auto:N, not -1
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --batch_size=0 ⇒ evaluate: --batch_size is a number of at least 1, auto or auto:N, not 0
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --device=foo ⇒ device: foo can't be used: Expected one of cpu, cuda, ipu, xpu, mkldnn,
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --device=cuda ⇒ device: cuda can't be used: Torch not compiled with CUDA enabled
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --num_fewshot=-1 ⇒ num_fewshot must be at least 0, not -1
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --num_fewshot=x ⇒ evaluate: argument --num_fewshot/-f: invalid int value: 'x'
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --output_path=/proc/x ⇒ evaluate: --output_path:
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --metadata={bad ⇒ evaluate: Invalid JSON: {bad. Hint: Use double quotes for JSON strings.
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --metadata=3 ⇒ evaluate: argument --metadata: expected `key=value`, got '3'
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --gen_kwargs={bad ⇒ evaluate: Invalid JSON: {bad. Hint: Use double quotes for JSON strings.
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --gen_kwargs=3 ⇒ evaluate: argument --gen_kwargs: expected `key=value`, got '3'
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --seed=abc ⇒ evaluate: argument --seed: invalid functools.partial(<function _int_or_n
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --model=hf ⇒ evaluate: --model is for lm_eval alone; lit-spectral writes JSON and Ten
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --model_args=foo=1 ⇒ model_args: there is no foo for lit-spectral; there are add_bos_token, b
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --wandb_args=project=x ⇒ evaluate: --wandb_args is for lm_eval alone; lit-spectral writes JSON an
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --samples={bad ⇒ evaluate: argument --samples/-E: invalid try_parse_json value: '{bad'
evaluate --backbone=BACKBONE --tasks=local_arc --include_path=tasks --max_batch_size=-1 ⇒ max_batch_size must be at least 1, not -1
"""
