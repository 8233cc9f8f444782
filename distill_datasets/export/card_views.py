"""What a card says of labels of views, and lines that train on them with nothing of this library.

The lines render every recorded view as it was labeled and compare the network with the teacher's
logits, by the loss and the optimizer of the students that were measured.
"""

from typing import Any

from distill_datasets.export.content import CLASSIFIER, SIBLING, Content, ViewLabels
from distill_datasets.training.rows import ROWS

_TRAIN = """\
{imports}import torch
from datasets import load_dataset
from torch.nn import functional as F

rows = load_dataset("{repo}", "default", split="train").with_format("torch")[:]
images = rows["image"].float() / 255
height, width = images.shape[2:]
mean, std = torch.tensor({mean}).view(-1, 1, 1), torch.tensor({std}).view(-1, 1, 1)
{classifier}
def one(image, crop, flip{tiles_argument}):
{moved}    top, left, high, wide = (crop * torch.tensor([height, width] * 2)).round().int().tolist()
    part = image[:, top{pad} : top + high{pad}, left{pad} : left + wide{pad}]
    shown = F.interpolate(part[None], (height, width), mode="bilinear")[0].clone()
    return shown.flip(-1) if flip else shown

def picture(v):  # one view; what a network sees of it
    own = one(images[v["image"]], v["crop"], v["flip"]{tiles})
    other = one(images[v["partner"]], v["partner_crop"], v["partner_flip"]{partner_tiles})
    top, left, bottom, right = v["box"]
    own[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return (v["share"] * own + (1 - v["share"]) * other - mean) / std

{blocks}
{network}{optimizer}
for done, said in enumerate(blocks()):
{rate}    for batch in torch.randperm(len(said["image"])).split({batch}):
        if len(batch) < {least}:
            continue
        view = {{name: torch.as_tensor(column)[batch] for name, column in said.items()}}
        seen = torch.stack(
            [picture({{name: view[name][i] for name in view}}) for i in range(len(batch))]
        )
        teacher = {teacher}
        logits = net(seen)
        loss = {loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()  # test images: (pixels / 255 - mean) / std
"""

_PAD = "    image = F.pad(image, [{pad}] * 4)  # black beyond the edges\n"

_TILES = """\
    image = image.unflatten(1, ({count}, -1))[:, tiles[:{count}].long()].flatten(1, 2)
    image = image.unflatten(2, ({count}, -1))[:, :, tiles[{count}:].long()].flatten(2, 3)
"""

_EPOCHS = """\
views = load_dataset("{repo}", "relabel", split="train").with_format("torch")
epochs = len(views) // len(images)

def blocks():  # a view of every image
    for epoch in range(epochs):
        yield views[epoch * len(images) : (epoch + 1) * len(images)]
"""

_POOL = """\
views = load_dataset("{repo}", "relabel", split="train").with_format("torch")
epochs = {epochs} * len(images) // {batch}

def blocks():  # views that were labeled together, drawn with replacement
    for _ in range(epochs):
        start = int(torch.randint(max(1, len(views) // {batch}), ())) * {batch}
        yield views[start : start + {batch}]
"""

_SHARDS = """\
folder = "{repo}{sibling}"  # of a folder, or of the repository
if not os.path.exists(folder):
    folder = snapshot_download(folder, repo_type="dataset")
shards = sorted(pathlib.Path(folder).glob("relabel-*.tar"))
epochs = sum(
    name.endswith(".image.npy") for shard in shards for name in tarfile.open(shard).getnames()
)

def blocks():  # some batches of an epoch
    for shard in shards:
        block, key = {{}}, None
        with tarfile.open(shard) as tar:
            for member in tar:
                now, name, _ = member.name.split(".")
                if block and now != key:
                    yield block
                    block = {{}}
                key = now
                array = numpy.load(io.BytesIO(tar.extractfile(member).read()))
                block[name] = torch.from_numpy(array)
        yield block
"""

_CLASSIFIER = """\
path = "{repo}/{classifier}"  # of a folder, or of the repository
if not os.path.exists(path):
    path = hf_hub_download("{repo}", "{classifier}", repo_type="dataset")
classifier = load_file(path)
"""

_RATE = """\
    for group in optimizer.param_groups:
        group["lr"] = {lr} * (1 + math.cos(math.pi * done / ({eta} * epochs))) / 2
"""

_ADAMW = """\
weights = [[w for w in net.parameters() if (w.ndim > 1) == large] for large in (True, False)]
optimizer = torch.optim.AdamW(
    [{{"params": weights[0]}}, {{"params": weights[1], "weight_decay": 0.0}}],
    {lr}, ({beta1}, {beta2}), {epsilon}, {weight_decay},
)
"""


def about_rows(content: Content, results: list[dict[str, Any]]) -> str:
    """Which rows had a teacher's labels."""
    if content.relabel is None:
        return ""
    text = (
        " Students of this dataset see its recorded views with the teachers' labels; those of as "
        "many real images see views that the same teachers labeled by the same rule"
    )
    if any(ROWS[row["from"]].classes_alone for row in results if row["from"] in ROWS):
        text += (
            ". Labels of classes alone, and the full source, are trained on by the same recipe "
            "without a teacher: views are drawn anew in every pass and classes mixed as views are"
        )
    return f"{text}."


def label_budget(budget: dict[str, Any]) -> str:
    """What labels of views take, in a line of its own."""
    if "view_labels" not in budget:
        return ""
    return (
        f"\n- labels of views: {budget['view_labels']:,} of "
        f"{budget['bytes_per_view_label']:,} bytes each, view and label, "
        f"{budget['view_label_bytes']:,} bytes before compression"
    )


def about_views(said: ViewLabels) -> str:
    """Where the labels of views are and what a row of them holds."""
    where = (
        "`relabel` has"
        if said.config is not None
        else f"The dataset of the same name with `{SIBLING}` has, as tar shards,"
    )
    label = {
        "features": f"the teacher's features (`{CLASSIFIER}` makes logits of them)",
        "top_k": "the teacher's largest logits and their classes",
    }.get(said.facts.get("store", "logits"), "the teacher's logits")
    return (
        f"{where} recorded views with {label}: `image` (its row in `default`), `crop` (top, left, "
        "height and width as shares), `flip`; the view mixed in (`partner`, `partner_crop`, "
        "`partner_flip`), which fills `box` (top, left, bottom, right in pixels) and has the share "
        "1 - `share` elsewhere."
    )


def training_on_views(content: Content, repo: str, network: str, optimizer: str) -> str:
    """Python that trains a network once through all labels of views.

    Args:
        content: what is published, with labels of views.
        repo: what `load_dataset` is given.
        network: lines that make `net`.
        optimizer: the call that makes one of `torch.optim`, where it is not adamw.
    """
    said = content.relabel
    assert said is not None, "there is nothing to replay"
    facts, student = said.facts, content.student
    sharded = said.config is None
    rule = student.get("optimizer", {"name": "sgd", "lr": 0.01})
    cosine = student.get("schedule") == "cosine"
    pad, tiles = facts.get("pad", 0), facts.get("tiles", 1)
    moved = (_TILES.format(count=tiles) if tiles > 1 else "") + (
        _PAD.format(pad=pad) if pad else ""
    )
    if sharded:
        blocks = _SHARDS.format(repo=repo, sibling=SIBLING)
    elif facts.get("keep", 1.0) < 1:
        blocks = _POOL.format(repo=repo, epochs=facts["epochs"], batch=facts["batch"])
    else:
        blocks = _EPOCHS.format(repo=repo)
    featured = facts.get("store") == "features"
    wanted = {
        "import io": sharded,
        "import math": cosine,
        "import os": sharded or featured,
        "import pathlib": sharded,
        "import tarfile": sharded,
        "\nimport numpy": sharded,
        "from huggingface_hub import hf_hub_download": featured,
        "from huggingface_hub import snapshot_download": sharded,
        "from safetensors.torch import load_file": featured,
    }
    batch = min(student.get("batch", 100), len(content.images_NCHW))
    return _TRAIN.format(
        imports="".join(f"{line}\n" for line, needed in wanted.items() if needed),
        repo=repo,
        mean=content.mean,
        std=content.std,
        classifier=_CLASSIFIER.format(repo=repo, classifier=CLASSIFIER) if featured else "",
        tiles_argument=", tiles" if tiles > 1 else "",
        tiles=', v["tiles"]' if tiles > 1 else "",
        partner_tiles=', v["partner_tiles"]' if tiles > 1 else "",
        moved=moved,
        pad=f" + {pad}" if pad else "",
        blocks=blocks,
        network=network,
        optimizer=(
            _ADAMW.format(**rule)
            if rule["name"] == "adamw"
            else f"optimizer = torch.optim.{optimizer}\n"
        ),
        rate=_RATE.format(lr=rule["lr"], eta=student.get("smoothing") or 1) if cosine else "",
        batch=batch,
        # students leave out what is left of a pass; a pool has whole batches
        least=batch if facts.get("keep", 1.0) == 1 else min(2, batch),
        teacher=_teacher(facts, len(content.class_names)),
        loss=_loss(student),
    )


def _teacher(facts: dict[str, Any], classes: int) -> str:
    """The teacher's logits of a batch `view`."""
    if facts.get("store") == "features":
        return 'F.linear(view["features"].float(), classifier["weight_KD"], classifier["bias_K"])'
    if facts.get("store") == "top_k":
        return (
            f"torch.full((len(batch), {classes}), -torch.inf).scatter(\n"
            '            1, view["indices"].long(), view["values"].float()\n        )'
        )
    return 'view["logits"].float()'


def _loss(student: dict[str, Any]) -> str:
    """The loss of `logits` against `teacher`."""
    kind, heat = student.get("loss", "soft"), student.get("temperature", 1.0)
    if kind == "soft":
        return "F.cross_entropy(logits, teacher.softmax(1))"
    if kind == "mse":
        hard = student.get("hard_weight", 0.0)
        also = f' + {hard} * F.cross_entropy(logits, rows["label"][view["image"].long()])'
        return "F.mse_loss(logits, teacher)" + (also if hard else "")
    scaled = f"{heat} ** 2 * " if student.get("scale_by_temperature") else ""
    return (
        f"{scaled}F.kl_div(\n            (logits / {heat}).log_softmax(1), (teacher / {heat})"
        '.softmax(1), reduction="batchmean"\n        )'
    )
