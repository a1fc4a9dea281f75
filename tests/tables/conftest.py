"""Tables of two rows gain nothing from compiled code, which costs most of the time of a small Spark job."""

import pytest


@pytest.fixture(autouse=True, scope="package")
def interpreted(request):
    spark = request.getfixturevalue("spark")
    settings = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    before = {key: spark.conf.get(key) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    yield
    for key, value in before.items():
        spark.conf.set(key, value)
