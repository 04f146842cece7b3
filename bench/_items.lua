-- wrk's requests: a row by its key, the keys drawn evenly.
request = function()
  return wrk.format("GET", "/items/" .. math.random(1, 1000))
end
