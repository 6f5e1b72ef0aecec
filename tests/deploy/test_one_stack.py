"""All deployed tests share one coordinator and its nodes, also where several processes run tests."""

import pytest
from tests.deploy.stack import claim_only_stack


def test_a_second_stack_in_one_run_is_refused(tmp_path):
    claim_only_stack(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="second stack"):
        claim_only_stack(tmp_path)


def test_whoever_uses_the_stack_is_in_the_group_that_one_process_runs(request):
    groups = {
        item.nodeid: [mark.args for mark in item.iter_markers("xdist_group")]
        for item in request.session.items
        if "stack" in getattr(item, "fixturenames", ())
    }
    assert {name for name, group in groups.items() if group != [("deploy",)]} == set()
