"""The one place where a tenant's use is counted: scripts that Redis runs in one piece.

A sliding window of slices. What is used counts in the slice of Redis's clock in which it came, and
is forgotten when that slice has left the window as a whole: no span of the window's length ever
holds more than the limit, and what was used comes back at most one slice late (1/240 of the
window). GCRA would let a tenant that was idle take its burst on top of its rate; a log of requests
would be exact to the microsecond, and grow with their number.

KEYS: the window, a hash of running totals (`r`, `t`), of counts by slice (`r7`, `t7`) and of the
oldest slice that may be counted (`first`); and the leases of requests under way, a sorted set by
lease end.
"""

from typing import Final

SLICES: Final = 240
"""Slices of a window."""

_WINDOW = """
local window, leases = KEYS[1], KEYS[2]
local slice_us = tonumber(ARGV[1])
local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local slice = math.floor(now_us / slice_us)

local function whole(number) return string.format('%.0f', number) end

local function read(at)
  local found = redis.call('HMGET', window, 'r' .. whole(at), 't' .. whole(at))
  return tonumber(found[1]), tonumber(found[2])
end

local function count(at, requests, tokens)
  redis.call('HINCRBY', window, 'r', whole(requests))
  redis.call('HINCRBY', window, 't', whole(tokens))
  redis.call('HINCRBY', window, 'r' .. whole(at), whole(requests))
  redis.call('HINCRBY', window, 't' .. whole(at), whole(tokens))
end

local first = tonumber(redis.call('HGET', window, 'first')) or slice
for at = first, slice - SLICES - 1 do
  local requests, tokens = read(at)
  if requests then
    redis.call('HINCRBY', window, 'r', whole(-requests))
    redis.call('HINCRBY', window, 't', whole(-tokens))
    redis.call('HDEL', window, 'r' .. whole(at), 't' .. whole(at))
  end
end
first = math.min(math.max(first, slice - SLICES), slice)
redis.call('HSET', window, 'first', whole(first))
redis.call('PEXPIRE', window, whole((SLICES + 2) * slice_us / 1000 + 1))
""".replace("SLICES", str(SLICES))

RESERVE: Final = (
    _WINDOW
    + """
local max_requests, max_tokens = tonumber(ARGV[2]), tonumber(ARGV[3])
local max_running, tokens = tonumber(ARGV[4]), tonumber(ARGV[5])
local lease, lease_us = ARGV[6], tonumber(ARGV[7])

local used = redis.call('HMGET', window, 'r', 't')
local requests_over = max_requests > 0 and (tonumber(used[1]) or 0) + 1 - max_requests or 0
local tokens_over = max_tokens > 0 and (tonumber(used[2]) or 0) + tokens - max_tokens or 0
if requests_over > 0 or tokens_over > 0 then
  local why = requests_over > 0 and 'requests' or 'tokens'
  local last = first
  for at = first, slice do
    local freed_requests, freed_tokens = read(at)
    if freed_requests then
      requests_over = requests_over - freed_requests
      tokens_over = tokens_over - freed_tokens
    end
    last = at
    if requests_over <= 0 and tokens_over <= 0 then break end
  end
  return {why, whole((last + SLICES + 1) * slice_us - now_us)}
end

if max_running > 0 then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', whole(now_us))
  if redis.call('ZCARD', leases) >= max_running then return {'concurrency', '0'} end
  redis.call('ZADD', leases, whole(now_us + lease_us), lease)
  redis.call('PEXPIRE', leases, whole(lease_us / 1000 * 2))
end
count(slice, 1, tokens)
return {'', whole(slice)}
""".replace("SLICES", str(SLICES))
)
"""Counts a request, if all limits allow it.

ARGV: microseconds of a slice; limits of requests, of tokens and of requests under way (0: none);
tokens of this request; name and microseconds of its lease. Returns `{'', slice}`, or what is
exceeded (requests, tokens or concurrency) and the microseconds until it would not be if nothing
else came."""

SETTLE: Final = (
    _WINDOW
    + """
local at, requests, tokens = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREM', leases, ARGV[5])
if tokens > 0 then
  count(slice, 0, tokens)
  tokens = 0
end
if at >= first and read(at) then count(at, requests, tokens) end
return 1
"""
)
"""Ends a request, and corrects what was counted for it.

ARGV: microseconds of a slice; the slice that it was counted in; requests and tokens to add; name of
its lease. What it gives back is free at once; what it took beyond its estimate counts from now."""

RENEW: Final = """
local t = redis.call('TIME')
local end_us = string.format('%.0f', t[1] * 1000000 + t[2] + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], end_us, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[1] / 1000 * 2))
return 1
"""
"""Prolongs leases. KEYS: the leases. ARGV: microseconds, and the leases' names."""
