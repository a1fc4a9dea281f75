from twinlib.tables.schemas import TABLES


def test_keys_are_columns_and_a_patient_s_key_is_never_null():
    for table in TABLES.values():
        columns = {c.name: c for c in table.columns}
        assert set(table.key) <= set(columns) and len(columns) == len(table.columns)
        if table.by_patient:  # rows are merged by key, and a null equals no other
            assert table.key[0] == "patient_id" and not any(columns[k].nullable for k in table.key)


def test_rules_follow_from_the_columns():
    rules = TABLES["patients"].rules
    assert rules["patient_id_not_null"] == "`patient_id` IS NOT NULL"
    assert rules["sex_allowed"] == "`sex` IS NULL OR `sex` IN ('female', 'male', 'other', 'unknown')"
    assert TABLES["exposures"].rules["kind_allowed"] == "`kind` IN ('dose', 'rate')"
