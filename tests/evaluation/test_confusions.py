from mstr_hf.evaluation.confusions import character_confusions, differences, script_confusions


def test_scripts_are_counted_by_what_stands_and_what_is_read():
    scripts, matrix = script_confusions(["दूध", "দুধ", "x", "24"], ["दूध", "दूध", "24", "24"])
    assert scripts == ["Deva", "Zyyy", "Beng", "Latn"]
    assert matrix == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_characters_are_aligned():
    readings = ["कि", "शहरी", "दूघ", "xyz", "दूघ"]
    truths = ["की", "शहर", "दूध", "दूध", "दूध"]
    found = character_confusions(readings, truths)
    assert [(confusion.true, confusion.read, confusion.count, confusion.words) for confusion in found] == [
        ("ध", "घ", 2, [2, 4]),
        ("ी", "ि", 1, [0]),
        ("", "ी", 1, [1]),
    ]


def test_left_out_characters_and_case():
    found = {(confusion.true, confusion.read) for confusion in character_confusions(["Shp", "cafe"], ["Shop", "Cafe"])}
    assert found == {("o", ""), ("C", "c")}


def test_differences_keep_clusters_whole():
    assert differences("हिन्दि", "हिन्दी") == [("हि", False), ("न्दि", True)]
    assert differences("shop", "shop") == [("shop", False)]
    assert differences("shoop", "shop") == [("sho", False), ("o", True), ("p", False)]
    assert differences("", "shop") == []
    assert differences("Cafe\u0301", "Café") == [("Café", False)]
