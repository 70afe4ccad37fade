from inicfg import dumps, loads


def test_written_text():
    assert dumps({"": {"a": 1}, "s": {"b": True, "c": ["x", 2.5]}}) == 'a = 1\n\n[s]\nb = yes\nc = "x", 2.5\n'


def test_round_trip():
    sections = {"": {"name": 'say "hi"', "size": 3}, "paths": {"all": ["/srv", "C:\\new"], "lines": "a\nb"}}
    assert loads(dumps(sections)) == sections
