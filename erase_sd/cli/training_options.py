"""Options of the unlearning. An option's Python name is the library's field."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from ..methods.registry import MethodName
from ..models.choices import Towers
from ..unlearning.settings import TrainingPrecision

MethodChoice = Annotated[
    MethodName | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help=f"Unlearning method, one of {', '.join(get_args(MethodName))}; `erase-sd methods` "
        "describes them.",
        show_default="cliperase-anchored",
    ),
]
SetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Hyperparameter of the method, such as forget_weight=3; repeatable.",
        show_default="the method's",
    ),
]
TrainedTowers = Annotated[
    Towers | None,
    typer.Option(
        help="CLIP towers to train; Stable Diffusion uses the text tower only.",
        show_default="text",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Learning rate of Adam at its peak.", show_default="the method's"),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Maximum number of training steps.", show_default="the method's"),
]
MinSteps = Annotated[
    int | None,
    typer.Option(help="Training steps before the forget threshold can apply.", show_default="100"),
]
ForgetBatch = Annotated[
    int | None, typer.Option(help="Captions of the forget set per step.", show_default="48")
]
RetainBatch = Annotated[
    int | None, typer.Option(help="Captions of the retain set per step.", show_default="96")
]
ValidateEvery = Annotated[
    int | None, typer.Option(help="Training steps between validation steps.", show_default="20")
]
ForgetThreshold = Annotated[
    float | None,
    typer.Option(
        help="Residual concept similarity on validation images (0-1) at which the run stops.",
        show_default="the method's",
    ),
]
MaxResidual = Annotated[
    float | None,
    typer.Option(
        help="Held-out residual concept similarity above which unlearning fails with exit status 1.",
        show_default="0.5; 0.75 for methods that change the U-Net",
    ),
]
RetainFloor = Annotated[
    float | None,
    typer.Option(
        help="Retained fidelity on validation images (0-1) below which a step is rolled back.",
        show_default="the method's",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the training batches.", show_default="0")]
MineMentions = Annotated[
    bool | None,
    typer.Option(
        "--mentions/--no-mentions",
        help="Also erase other words and phrases that captions use for the concept, found with CLIP; "
        "only cliperase-anchored and cliperase-hardened do.",
        show_default="True",
    ),
]
TrainingDtype = Annotated[
    TrainingPrecision | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Precision of training, fp32, bf16 or auto: bf16 on CUDA and on CPUs with bfloat16 "
        "instructions, else fp32.",
        show_default="auto",
    ),
]
