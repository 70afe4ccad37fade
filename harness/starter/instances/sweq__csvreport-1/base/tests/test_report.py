import pytest

from csvreport import ReportError, report

GROCERIES = "item,price,count\nbread,3.5,2\nbutter,12,1\n"


def lines(*args, **options):
    return report(*args, **options).splitlines()


def test_whole_report():
    assert lines(GROCERIES, total=["price", "count"]) == [
        "item    price  count",
        "------  -----  -----",
        "bread    3.50      2",
        "butter  12.00      1",
        "------  -----  -----",
        "total   15.50      3",
    ]


def test_no_total_unless_asked():
    assert len(lines(GROCERIES)) == 4


def test_words_among_numbers_make_a_text_column():
    assert lines("id,n\na,1\nb,many\n") == ["id  n", "--  ----", "a   1", "b   many"]


def test_total_widens_the_column():
    assert lines("id,n\na,7\nb,8\n", total=["n"])[-1] == "total  15"


def test_total_of_words_is_refused():
    with pytest.raises(ReportError, match="column 'n', row 2: 'many' is no number"):
        report("id,n\na,1\nb,many\n", total=["n"])


def test_sorted_by_number_and_by_text():
    text = "id,n\nb,10\na,9\n"
    assert [line[0] for line in lines(text, sort_by="n")[2:]] == ["a", "b"]
    assert [line[0] for line in lines(text, sort_by="id")[2:]] == ["a", "b"]


def test_unknown_column():
    with pytest.raises(ReportError, match="no column 'x'; there are item, price, count"):
        report(GROCERIES, sort_by="x")


def test_first_column_has_no_total():
    with pytest.raises(ReportError, match="first column"):
        report("n\n1\n", total=["n"])
