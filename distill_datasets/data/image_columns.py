"""Which column holds the images, or what `source.view` makes images of.

It is an `Image`, or bytes that PIL identifies, alone or as the field `bytes` of a struct, or arrays
of three axes. With a view it is of the type that the view reads, or bytes where they are named.
"""

from collections.abc import Callable, Mapping
from typing import Any

from distill_datasets.data import columns
from distill_datasets.errors import DataError
from distill_datasets.media.view import FileView, views_of

FILES = frozenset({"Image", "Audio", "Video", "Nifti", "Pdf"})
"""Features of `datasets` whose cells are the bytes of a file, or its path."""


def holds_bytes(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds bytes that may be images: by themselves, or in a struct with them."""
    if isinstance(feature, dict):
        return "bytes" in feature and columns.dtype(feature["bytes"]).endswith("binary")
    return columns.dtype(feature).endswith("binary")


def holds_files(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds whole files: images, sounds, videos or volumes."""
    return columns.kind(feature) in FILES


def is_array(feature: Any) -> bool:  # noqa: ANN401
    """Whether a column holds arrays of numbers of three axes: `Array3D`, or lists of lists."""
    if columns.kind(feature) == "Array3D":
        return True
    depth = 0
    while columns.kind(feature) in columns.LISTS:
        feature, depth = feature.feature, depth + 1
    return depth == 3 and columns.dtype(feature).startswith(("int", "uint", "float", "double"))


def array_of(feature: Any) -> tuple[str, tuple[int, ...] | None]:  # noqa: ANN401
    """The type of the numbers of arrays, and their shape where the column declares it."""
    if columns.kind(feature) == "Array3D":
        return str(feature.dtype), tuple(feature.shape)
    while columns.kind(feature) in columns.LISTS:
        feature = feature.feature
    return columns.dtype(feature), None


def image_mode(feature: Any) -> str | None:  # noqa: ANN401
    """The PIL mode that an image column asks for."""
    return feature.mode if columns.kind(feature) == "Image" else None


def image_column(
    features: Mapping[str, Any],
    named: str | None,
    identified: Callable[[str], bool],
    view: FileView | None = None,
) -> str:
    """The column that holds the images, or what a view makes images of.

    Args:
        features: the dataset's columns.
        named: `source.image_column`, or None to find the only `Image` column, else the only one
            whose bytes are images.
        identified: whether the first cells of a column of bytes are images.
        view: `source.view`.

    Raises:
        DataError: there is none, there are several, or the named one holds no images.
    """
    if view is not None:
        return _viewed_column(features, named, view)
    remedy = (
        "encode pictures as PNG first, for example "
        'dataset.map(...).cast_column("image", datasets.Image())'
    )
    if named is not None:
        if named in features and holds_bytes(features[named]):
            if identified(named):
                return named
            raise DataError(
                f"source.image_column: the bytes in {named!r} are no images that PIL identifies; "
                "expected whole image files, such as PNG or JPEG, in every cell"
            )
        feature = columns.check_named(features, "image_column", named)
        if columns.kind(feature) != "Image" and not (named in features and is_array(feature)):
            _refuse_other_kind(named, feature)
            raise DataError(
                f"source.image_column: {named!r} is {columns.words(feature)}, expected an Image "
                "column, the bytes of image files, or arrays of three axes (channels, height, "
                f"width); {remedy}"
            )
        return named
    found = [name for name, feature in features.items() if columns.kind(feature) == "Image"]
    unidentified = list[str]()
    if not found:
        candidates = [name for name, feature in features.items() if holds_bytes(feature)]
        found = [name for name in candidates if identified(name)]
        unidentified = [repr(name) for name in candidates if name not in found]
    if not found:
        found = [name for name, feature in features.items() if is_array(feature)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several image columns: {', '.join(found)}; set source.image_column to one of them"
        )
    for name, feature in features.items():
        _refuse_other_kind(name, feature)
    tried = f"the bytes in {', '.join(unidentified)} are no images that PIL identifies; "
    raise DataError(
        f"no image column among: {columns.describe(features)}; {tried if unidentified else ''}"
        "expected an Image column, the bytes of image files, or arrays of three axes (channels, "
        f"height, width); {remedy}"
    )


def _viewed_column(features: Mapping[str, Any], named: str | None, view: FileView) -> str:
    """The column that a view reads; bytes by themselves are read where they are named."""
    expected = f"source.view: {view.name!r} reads columns of {view.reads}"
    if named is not None:
        if named in features and holds_bytes(features[named]):
            return named
        feature = columns.check_named(features, "image_column", named)
        if columns.kind(feature) == view.reads:
            return named
        raise DataError(
            f"{expected}, and {named!r} is {columns.words(feature)}; {_valid_views(feature)}"
        )
    found = [name for name, feature in features.items() if columns.kind(feature) == view.reads]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several columns of {view.reads}: {', '.join(found)}; set source.image_column to one "
            "of them"
        )
    others = [feature for feature in features.values() if holds_files(feature)]
    remedy = _valid_views(others[0]) if others else "set source.image_column to one of bytes"
    raise DataError(f"{expected}, got: {columns.describe(features)}; {remedy}")


def suggested_view(features: Mapping[str, Any]) -> str | None:
    """The view that a user may want of these columns; None where some column holds images."""
    kinds = [columns.kind(feature) for feature in features.values() if holds_files(feature)]
    if "Image" in kinds:
        return None
    return next((name for kind in kinds for name in views_of(kind)), None)


def _refuse_other_kind(name: str, feature: Any) -> None:  # noqa: ANN401
    """Refuse a column of sounds, videos or volumes that no view was named for."""
    if holds_files(feature) and columns.kind(feature) != "Image":
        raise DataError(
            f"source.view: missing, and {name!r} is {columns.words(feature)}; "
            f"{_valid_views(feature)}"
        )


def _valid_views(feature: Any) -> str:  # noqa: ANN401
    valid = views_of(columns.kind(feature))
    if not valid:
        return f"{columns.words(feature)} needs none: leave source.view out"
    return f"set source.view to one that reads {columns.words(feature)}: {', '.join(valid)}"
