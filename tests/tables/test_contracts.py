from twinlib.tables.schemas import TABLES


def test_keys_are_columns_and_a_patient_table_s_key_starts_with_the_patient():
    for table in TABLES.values():
        columns = {c.name: c for c in table.columns}
        assert set(table.key) <= set(columns) and len(columns) == len(table.columns)
        assert (table.key[0] == "patient_id") == table.by_patient


def test_rules_follow_from_the_columns():
    rules = TABLES["patients"].rules
    assert rules["patient_id_not_null"] == "`patient_id` IS NOT NULL"
    assert rules["sex_allowed"] == "`sex` IS NULL OR `sex` IN ('female', 'male', 'other', 'unknown')"
    assert TABLES["exposures"].rules["kind_allowed"] == "`kind` IN ('dose', 'rate', 'treatment')"
