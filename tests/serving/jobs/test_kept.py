from qwen_edit.contract.request import EditRequest
from qwen_edit.serving.jobs.job import Job, Order, Result
from qwen_edit.serving.jobs.kept import Kept
from tests.support.responses import a_response

REQUEST = EditRequest(image="aGk=", prompt="x")


def result(size: int) -> Result:
    picture = "x" * size
    return Result(a_response(image=picture, images=[picture]), {})


def ended(kept: Kept, job_id: str, at: float, size: int = 10, kept_s: float = 60.0, key: str | None = None) -> Job:
    job = Job(job_id, Order("run", REQUEST, kept_s=kept_s, key=key), at)
    kept.put(job)
    job.end("COMPLETED", at, result(size))
    kept.forget(at)
    return job


def test_a_job_is_known_until_its_time_is_over() -> None:
    kept = Kept()
    job = ended(kept, "one", at=0.0, key="mine")

    assert kept.find("one", 60.0) is job
    assert kept.find_by_key("mine", 60.0) is job
    assert kept.find("one", 61.0) is None
    assert kept.find_by_key("mine", 0.0) is None


def test_a_key_leads_to_the_last_job_that_had_it() -> None:
    kept = Kept()
    ended(kept, "one", at=0.0, key="mine")
    later = ended(kept, "two", at=30.0, key="mine")

    assert kept.find("one", 61.0) is None
    assert kept.find_by_key("mine", 61.0) is later


def test_a_job_that_has_not_ended_is_never_forgotten() -> None:
    kept = Kept(most_jobs=0)
    job = Job("one", Order("run", REQUEST), 0.0)
    kept.put(job)
    kept.forget(1e9)

    assert kept.find("one", 1e9) is job
    assert kept.unfinished() == [job]


def test_the_oldest_results_go_first_and_their_status_stays() -> None:
    kept = Kept(most_bytes=25)
    jobs = [ended(kept, str(number), at=float(number)) for number in range(4)]

    assert [job.result is not None for job in jobs] == [False, False, True, True]
    assert [job.is_let_go for job in jobs] == [True, True, False, False]
    assert kept.find("0", 4.0) is jobs[0]
    assert jobs[0].status == "COMPLETED"


def test_the_last_result_stays_however_large_it_is() -> None:
    kept = Kept(most_bytes=25)

    assert ended(kept, "one", at=0.0, size=1000).result is not None


def test_the_number_of_statuses_has_a_bound() -> None:
    kept = Kept(most_jobs=2)
    for number in range(4):
        ended(kept, str(number), at=float(number))

    assert [kept.find(str(number), 4.0) is not None for number in range(4)] == [False, False, True, True]


def test_a_request_is_not_kept_behind_its_result_but_behind_its_failure() -> None:
    kept = Kept()
    job = ended(kept, "one", at=0.0)
    failed = Job("two", Order("run", REQUEST), 0.0)
    failed.end("FAILED", 0.0)

    assert job.order is None
    assert failed.order is not None
