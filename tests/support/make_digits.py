"""Make the data set that ships with the package from scikit-learn's copy of the UCI digits.

    python tests/support/make_digits.py            writes assets/uci-digits/digits.parquet
    python tests/support/make_digits.py --check    compares, and exits with 1 when bytes differ

The bytes depend only on the digits and on the version of pyarrow and Pillow.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

TARGET = (
    Path(__file__).parent.parent.parent
    / "distill_datasets"
    / "assets"
    / "uci-digits"
    / "digits.parquet"
)


def png(pixels_HW: np.ndarray) -> bytes:
    """One gray image, encoded."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def make() -> bytes:
    """The Parquet file: an `Image` column and a `ClassLabel` column, as `datasets` reads them."""
    digits = load_digits()
    pixels_NHW = np.rint(digits.images * 255 / 16).astype(np.uint8)
    encoded = [{"bytes": png(pixels_HW), "path": None} for pixels_HW in pixels_NHW]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": [str(digit) for digit in range(10)], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"image": encoded, "label": digits.target.astype(np.int64)}, schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["label"])
    return sink.getvalue()


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare bytes, write nothing")
    content = make()
    if parser.parse_args().check:
        return 0 if TARGET.is_file() and TARGET.read_bytes() == content else 1
    TARGET.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
