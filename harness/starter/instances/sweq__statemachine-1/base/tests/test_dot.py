from statemachine import to_dot


def test_drawing(order):
    assert to_dot(order, "order") == (
        "digraph order {\n"
        '  "new" [shape=doublecircle];\n'
        '  "new" -> "paid" [label="pay"];\n'
        '  "paid" -> "shipped" [label="ship"];\n'
        '  "new" -> "cancelled" [label="cancel"];\n'
        '  "paid" -> "cancelled" [label="cancel"];\n'
        '  "shipped" -> "cancelled" [label="cancel"];\n'
        '  "cancelled" -> "cancelled" [label="cancel"];\n'
        "}\n"
    )
