from modules.ops.attributes import index_attributes, select_images

COLUMNS = {"male": list("010101"), "hair": ["blond", "blond", "red", "red", "black", "black"]}


def test_conditions_select_images():
    attributes = index_attributes(COLUMNS, 12)  # twice as many images as rows: mirrored ones
    assert select_images(None, attributes, 12).tolist() == list(range(12))
    for where, fulfilled in {
        "male=0": lambda male, hair: male == "0",
        " male = 0 & hair!=black ": lambda male, hair: male == "0" and hair != "black",
        "hair=red&hair!=blond": lambda male, hair: hair == "red",
    }.items():
        rows = list(zip(*COLUMNS.values(), strict=True)) * 2
        assert select_images(where, attributes, 12).tolist() == [i for i, row in enumerate(rows) if fulfilled(*row)]
