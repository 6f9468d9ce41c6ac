-- KEYS: the fence. ARGV: the token in 20 digits, then for each command the number of its words and the words.
-- Answers {0, the highest token seen} or {1, the commands' answers}.
local seen = redis.call('GET', KEYS[1])
if seen and #seen ~= 20 then
    return redis.error_reply('ERR ' .. KEYS[1] .. ' is no fence: it holds something else')
end
if seen and seen > ARGV[1] then
    return {0, seen}
end
-- First of all: whatever a command fails at, no older token gets through afterwards.
if seen ~= ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[1])
end
local answers, at = {}, 2
while at <= #ARGV do
    local words = tonumber(ARGV[at])
    answers[#answers + 1] = redis.call(unpack(ARGV, at + 1, at + words))
    at = at + words + 1
end
return {1, answers}
