import logging

import pytest

from secateur.logs import only_errors


def test_loggers_say_only_errors_until_the_context_ends(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("someone.else")
    logger.setLevel(logging.INFO)
    with pytest.raises(KeyError), only_errors("someone.else"):
        logger.warning("advice")
        logger.error("fault")
        raise KeyError
    logger.info("news")
    assert [record.message for record in caplog.records] == ["fault", "news"]
