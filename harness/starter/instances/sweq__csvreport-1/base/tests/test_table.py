import pytest

from csvreport import ReportError
from csvreport.table import parse_cell, read_table


def test_cells():
    assert [parse_cell(text) for text in [" 7", "2.5 ", " x y "]] == [7, 2.5, "x y"]


def test_quoted_cells():
    assert read_table('name,n\n"Smith, Ann",1\n').rows == [["Smith, Ann", 1]]


def test_other_delimiter():
    assert read_table("a;b\n1;2\n", delimiter=";").rows == [[1, 2]]


def test_blank_lines_are_passed_over():
    assert read_table("a,b\n\n1,2\n\n").rows == [[1, 2]]


@pytest.mark.parametrize("text", ["", "\n\n"], ids=["nothing", "blank-lines"])
def test_names_are_needed(text):
    with pytest.raises(ReportError, match="names of the columns"):
        read_table(text)


def test_row_of_wrong_length():
    with pytest.raises(ReportError, match="row 2 has 1 cells instead of 2"):
        read_table("a,b\n1,2\n3\n")
