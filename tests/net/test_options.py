"""The options of a connection: their defaults, their checks, and changed copies."""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import pytest

import reactor.serve
from reactor import Reactor
from reactor.net.options import Callbacks, Options, check_callback
from tests.helpers.support import end, options_of, run_until


def test_the_defaults_are_the_documented_ones():
    options = Options()
    assert (options.high_water, options.low_water) == (64 << 10, 16 << 10)
    assert options.max_buffered == 16 << 20
    assert options.read_size == 64 << 10
    assert options.linger == 30
    assert (options.read_timeout, options.write_timeout, options.idle_timeout) == (None, None, None)
    assert options.nodelay is True
    assert options.keepalive is None


def test_the_low_mark_follows_a_high_mark_that_is_given_alone():
    assert Options(high_water=1000).low_water == 250
    assert Options(high_water=1 << 20).low_water == 16 << 10
    assert Options(high_water=0).low_water == 0


@pytest.mark.parametrize('marks', [(10, 11), (10, -1), (-1, None)])
def test_marks_out_of_order_are_refused(marks):
    high, low = marks
    with pytest.raises(ValueError, match=r'(low|high)_water'):
        Options(high_water=high, low_water=low)


@pytest.mark.parametrize('name', ['read_size', 'max_buffered'])
@pytest.mark.parametrize('value', [0, -1])
def test_sizes_are_above_zero(name, value):
    with pytest.raises(ValueError, match=name):
        Options(**{name: value})


@pytest.mark.parametrize('name', ['linger', 'read_timeout', 'write_timeout', 'idle_timeout'])
@pytest.mark.parametrize('value', [-1, math.nan, math.inf])
def test_times_are_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=name):
        Options(**{name: value})


@pytest.mark.parametrize('name', ['read_timeout', 'write_timeout', 'idle_timeout', 'handshake_timeout'])
def test_a_time_limit_of_0_is_refused_where_it_used_to_mean_never(name):
    with pytest.raises(ValueError, match=f'{name} must be a number of seconds above 0, not 0'):
        Options(**{name: 0})


def test_a_linger_of_0_is_allowed_and_means_no_time():
    assert Options(linger=0).linger == 0


@pytest.mark.parametrize('name', ['linger', 'read_timeout', 'write_timeout', 'idle_timeout', 'handshake_timeout'])
@pytest.mark.parametrize('value', ['5', b'5', True, [5], 5j])
def test_a_time_that_is_not_a_number_is_refused_by_name_and_not_by_a_comparison(name, value):
    with pytest.raises(TypeError) as caught:
        Options(**{name: value})
    assert str(caught.value) == f'{name} must be a number of seconds, not {value!r}'


@pytest.mark.parametrize('name', ['linger', 'read_timeout', 'write_timeout', 'idle_timeout', 'handshake_timeout'])
def test_any_finite_time_is_accepted(name):
    assert getattr(Options(**{name: 1e300}), name) >= 1e15
    assert getattr(Options(**{name: 10**400}), name) >= 1e15


@pytest.mark.parametrize('name', ['read_size', 'high_water', 'low_water', 'max_buffered'])
@pytest.mark.parametrize('value', [1.5, 4096.0, '4096', True, b'1'])
def test_a_size_that_is_not_a_whole_number_is_refused_at_the_call_and_does_not_end_connections_later(name, value):
    with pytest.raises(TypeError, match=name) as caught:
        Options(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize('value', [(1 << 30) + 1, 1 << 62, 1 << 64])
def test_a_read_size_that_no_recv_can_allocate_is_refused(value):
    with pytest.raises(ValueError, match='read_size must be a number of bytes, 1 to 1073741824, not'):
        Options(read_size=value)


@pytest.mark.parametrize('value', ['no', None, 2, 1.0])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match='nodelay must be True or False'):
        Options(nodelay=value)
    assert Options(nodelay=0).nodelay is False


def test_the_message_about_a_value_can_always_be_made():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    for value in Odd(), [Odd()]:
        with pytest.raises(TypeError, match='linger must be a number of seconds, not '):
            Options(linger=value)
    with pytest.raises(TypeError) as caught:
        Options(linger='x' * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize('value', ['often', [60, 10, 5], (60, '10', 5), True])
def test_a_keepalive_that_is_not_a_time_is_refused_at_the_call(value):
    with pytest.raises(TypeError, match='keepalive'):
        Options(keepalive=value)


@pytest.mark.parametrize('value', [-1, math.nan, math.inf, 32768, (60, 0), (60, 10, 128), (60, 10, 5, 1), ()])
def test_a_keepalive_that_no_kernel_accepts_is_refused_and_not_dropped_silently(value):
    with pytest.raises(ValueError, match='keepalive'):
        Options(keepalive=value)


@pytest.mark.parametrize('value', [None, 0.5, 60, 32767, (60,), (60, 10), (32767, 32767, 127)])
def test_a_keepalive_is_none_or_a_time_or_two_times_and_a_number(value):
    assert Options(keepalive=value).keepalive == value


def test_a_keepalive_of_0_means_none():
    assert Options(keepalive=0).keepalive is None


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError):
        Options(hihg_water=1)  # type: ignore[call-arg]


def test_a_changed_copy_has_the_same_shared_object():
    options = Options()
    assert options.changed(linger=1).shared is options.shared
    assert Options().shared is not options.shared


def test_connections_that_share_an_object_may_log_one_line_a_second():
    shared = Options().shared
    assert [shared.may_log(now) for now in (0.0, 0.5, 0.999, 1.0, 1.5, 2.0)] == [True, False, False, True, False, True]


def test_a_changed_copy_leaves_the_original_alone():
    options = Options(idle_timeout=5)
    other = options.changed(high_water=10, low_water=None)
    assert (other.high_water, other.low_water, other.idle_timeout) == (10, 2, 5)
    assert (options.high_water, options.low_water) == (64 << 10, 16 << 10)


@pytest.mark.parametrize('name', ['read_timeout', 'write_timeout', 'idle_timeout'])
def test_each_time_limit_makes_a_connection_timed(name):
    assert Options(**{name: 1}).timed
    assert not Options().timed


@pytest.mark.parametrize('name', Callbacks.__slots__)
def test_a_callback_that_is_not_callable_is_refused_by_name(name):
    with pytest.raises(TypeError, match=name):
        Callbacks(**{'on_data': None, name: 'print'})


def test_none_and_any_callable_are_callbacks():
    check_callback('on_data', None)
    check_callback('on_data', print)
    check_callback('on_data', [].append)


def test_connections_of_a_listener_share_their_options_until_one_changes_them(r, sockets):
    conns = []
    listener = r.listen_tcp('127.0.0.1', 0, on_connect=conns.append)
    for _ in range(3):
        sockets.connect(listener.address)
    run_until(r, lambda: len(conns) == 3)
    listener.close()
    assert conns[0].options is conns[1].options is conns[2].options
    conns[0].set_write_limits(high=10)
    assert conns[0].options is not conns[1].options
    assert conns[1].options.high_water == 64 << 10
    end(r, *conns)


def test_bad_options_raise_at_the_call_and_leave_nothing(r, sockets):
    ours, _ = sockets()
    for make in (lambda: r.listen_tcp('127.0.0.1', 0, high_water=-1), lambda: r.adopt(ours, on_data='x')):
        with pytest.raises((TypeError, ValueError)):
            make()
    assert r.handles() == []


# -- names


def methods_with_options() -> list[Any]:
    """Return every public function that takes `**options`."""
    found = [reactor.run, reactor.serve.run, *(getattr(Reactor, name) for name in dir(Reactor))]
    return [each for each in found if callable(each) and 'options' in getattr(each, '__annotations__', {})]


def misspelt(name: str) -> str:
    """Return the name without its second-to-last letter."""
    return name[:-2] + name[-1]


def call(method: Any, **options: Any) -> Any:
    """Call `method` with these options, and None for each argument that it requires."""
    needed = [each for each in signature(method).parameters.values() if each.default is each.empty]
    return method(*[None for each in needed if each.kind is each.POSITIONAL_OR_KEYWORD], **options)


@pytest.mark.parametrize('method', methods_with_options(), ids=lambda method: method.__qualname__)
def test_a_misspelt_option_names_the_method_that_was_called_and_the_nearest_option(method):
    for option in options_of(method):
        with pytest.raises(TypeError) as caught:
            call(method, **{misspelt(option): 1})
        wanted = f"{method.__name__}() has no option '{misspelt(option)}'; did you mean '{option}'?"
        assert str(caught.value) == wanted


def test_all_methods_that_share_options_check_their_names():
    assert {method.__name__ for method in methods_with_options()} == {
        *(
            'listen_tcp',
            'listen_unix',
            'open_fd',
            'connect_tcp',
            'connect_unix',
            'adopt',
            'bind_udp',
            'connect_udp',
            'spawn',
            'run',
        ),
    }


def test_if_no_option_is_similar_all_are_listed(r):
    with pytest.raises(
        TypeError, match=r"adopt\(\) has no option 'colour'; it has handshake_timeout, high_water, .*, sock"
    ):
        r.adopt(None, colour='red')


@pytest.mark.parametrize('method', ['listen_tcp', 'listen_unix'])
def test_an_option_of_another_method_is_explained(r, method):
    with pytest.raises(TypeError, match="has no option 'server_hostname': it is for the side that connects"):
        call(getattr(r, method), server_hostname='example.org')
    with pytest.raises(TypeError, match=r"adopt\(\) has no option 'ssl': .* call start_tls\(\) on the connection"):
        r.adopt(None, ssl=True)
