"""The data behind the cliff and dimension figures, and that figures are reproducible files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from headcount import constructions
from headcount.constructions.verify import verify_kinds
from headcount.core.errors import HeadcountError
from headcount.lab.figures import cliff, dimensions


@pytest.mark.parametrize("style", cliff.STYLES)
def test_the_cliff_is_where_verification_starts(style: cliff.Style) -> None:
    built = constructions.build("match2", tokens=8, modulus=31)
    bits = cliff.fewest_bits(built, style, count=4)
    assert bits is not None and 4 <= bits <= built.certificate.bits + 4
    assert verify_kinds(built, count=4, precision=f"{style}:{bits}").verified
    assert not verify_kinds(built, count=4, precision=f"{style}:{bits - 1}").verified


def test_no_cliff_where_float64_does_not_verify() -> None:
    built = constructions.build("qsa-polytope", tokens=64, sparsity=16, dim=2)
    assert cliff.fewest_bits(built, "float", count=2) is None


def test_the_cliff_moves_with_the_modulus() -> None:
    """Two bits for each doubling of M, as the gap 1 - cos(2 pi/M) says."""
    cliffs = [
        cliff.fewest_bits(constructions.build("match2", tokens=24, modulus=m), "float", count=12) for m in (67, 1069)
    ]
    assert cliffs[0] is not None and cliffs[1] is not None
    assert cliffs[1] - cliffs[0] == pytest.approx(2 * math.log2(1069 / 67), abs=2)


def test_rows_of_the_cliff(tmp_path: Path) -> None:
    curve = cliff.CURVES[3]
    small = [cliff.Curve(**{**vars(c), "values": c.values[:1], "count": 2}) for c in cliff.CURVES]
    rows = cliff.rows(small)
    assert [row["construction"] for row in rows] == ["match2", "match-s", "qsa-certificate", "qsa-polytope"]
    assert rows[3]["size"] == curve.values[0] and rows[3]["embedding_dim"] == 8 + 2 * 2
    for row in rows:
        assert row["float cliff bits"] <= row["sufficient bits"]
    first = cliff.FIGURE.write(rows, tmp_path / "a")
    second = cliff.FIGURE.write(rows, tmp_path / "b")
    assert all(first[kind].read_bytes() == second[kind].read_bytes() for kind in first)
    with first["csv"].open() as file:
        assert [row["construction"] for row in csv.DictReader(file)] == [row["construction"] for row in rows]


def test_dimensions_meet_and_exceed_the_bounds() -> None:
    rows = dimensions.rows(tokens=24, dim=3, precision_bits=8, sparsities=(1, 2, 4), count=2)
    for row in rows:
        q = row["sparsity"]
        assert row["qsa-polytope"] == row["qsa-radon"] == 3 + 2 * q
        assert row["qsa-certificate"] >= row["qsa-radon"] >= row["qsa-regions"]
        assert row["qsa-bits"] == math.ceil(math.ceil(math.log2(math.comb(23, q))) / 8)
        assert row["qsa-bits-all"] == math.ceil(math.ceil(math.log2(math.comb(24, q))) / 8)
        assert row["qsa-certificate wrong"] == row["qsa-polytope wrong"] == 0
        assert row["qsa-polytope verified in"] == "fp64"


def test_dimensions_verify_in_more_bits_where_float64_fails(tmp_path: Path) -> None:
    (row,) = dimensions.rows(tokens=64, dim=1, sparsities=(16,), count=1)
    assert row["qsa-polytope wrong"] > 0 and row["qsa-polytope bits"] > 53
    assert row["qsa-polytope verified in"] == f"wide:{row['qsa-polytope bits'] + 4}"
    assert dimensions.FIGURE.write([row], tmp_path)["svg"].read_text().count("more bits than float64") == 1


def test_largest_needs_sizes() -> None:
    with pytest.raises(HeadcountError, match="no sizes to try"):
        cliff.largest("match2", "fp16", "modulus", [], {}, 2, 0)
