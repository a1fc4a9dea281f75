# nlme and saemix on the data of benchmarks/population.py: Rscript population.R Theoph.csv simulated.csv -> JSON on standard output
# Optional: install.packages("saemix") first; nlme comes with R. CPU seconds of one process.
suppressMessages(library(nlme))
files <- commandArgs(trailingOnly = TRUE)
have_saemix <- requireNamespace("saemix", quietly = TRUE)

theoph <- read.csv(files[1])
theoph$amount <- theoph$Dose * theoph$Wt # Dose is in mg/kg
simulated <- read.csv(files[2])

one_compartment <- function(amount, time, lka, lcl, lv) {
  ka <- exp(lka); k <- exp(lcl - lv)
  amount * ka / (exp(lv) * (ka - k)) * (exp(-k * time) - exp(-ka * time))
}
two_compartments <- function(amount, time, lcl, lv, lq, lv2) {
  k10 <- exp(lcl - lv); k12 <- exp(lq - lv); k21 <- exp(lq - lv2)
  s <- k10 + k12 + k21
  r <- sqrt(s^2 - 4 * k10 * k21)
  a <- (s + r) / 2; b <- (s - r) / 2
  amount / exp(lv) * ((a - k21) * exp(-a * time) + (k21 - b) * exp(-b * time)) / (a - b)
}
spent <- function(work) {
  began <- proc.time()
  value <- tryCatch(work(), error = function(e) NULL)
  list(value = value, seconds = sum((proc.time() - began)[c("user.self", "sys.self")]))
}
numbers <- function(x) sprintf("[%s]", paste(format(x, digits = 8), collapse = ","))
entry <- function(run, estimates, loglik) {
  if (is.null(run$value)) return(sprintf('{"status":"failed","cpu_seconds":%.3f}', run$seconds))
  sprintf('{"status":"done","cpu_seconds":%.3f,"log_parameters":%s,"minus_two_log_likelihood":%.4f}',
          run$seconds, numbers(estimates(run$value)), -2 * loglik(run$value))
}

by_nlme <- function(formula, data, fixed, random, start, weights = NULL) spent(function()
  nlme(formula, data = data, fixed = fixed, random = random, start = start, weights = weights, method = "ML"))
nlme_theoph <- by_nlme(conc ~ one_compartment(amount, Time, lka, lcl, lv), theoph, lka + lcl + lv ~ 1,
                       pdDiag(lka + lcl + lv ~ 1) |> list() |> setNames("Subject"), log(c(1.5, 3, 30)))
nlme_simulated <- by_nlme(conc ~ two_compartments(dose, time, lcl, lv, lq, lv2), simulated, lcl + lv + lq + lv2 ~ 1,
                          pdDiag(lcl + lv + lq + lv2 ~ 1) |> list() |> setNames("id"), log(c(4, 25, 5, 30)), varPower(fixed = 1))

by_saemix <- function(data, group, predictors, response, model, names, start, error) spent(function() {
  options <- list(seed = 1, save = FALSE, save.graphs = FALSE, print = FALSE, displayProgress = FALSE, nbdisplay = 1e6)
  d <- saemix::saemixData(data, name.group = group, name.predictors = predictors, name.response = response, verbose = FALSE)
  m <- saemix::saemixModel(model, psi0 = matrix(start, nrow = 1, dimnames = list(NULL, names)), transform.par = rep(1, length(names)),
                           error.model = error, verbose = FALSE)
  saemix::saemix(m, d, options)
})
saemix_theoph <- saemix_simulated <- list(value = NULL, seconds = 0)
if (have_saemix) {
  saemix_theoph <- by_saemix(theoph, "Subject", c("amount", "Time"), "conc", function(psi, id, x)
    one_compartment(x[, 1], x[, 2], log(psi[id, 1]), log(psi[id, 2]), log(psi[id, 3])), c("ka", "cl", "v"), c(1.5, 3, 30), "constant")
  saemix_simulated <- by_saemix(simulated, "id", c("dose", "time"), "conc", function(psi, id, x)
    two_compartments(x[, 1], x[, 2], log(psi[id, 1]), log(psi[id, 2]), log(psi[id, 3]), log(psi[id, 4])),
    c("cl", "v", "q", "v2"), c(4, 25, 5, 30), "proportional")
}
by_importance <- function(fit) fit@results@ll.is
fixed_of <- function(fit) log(fit@results@fixed.effects)
cat(sprintf('{"nlme":{"theophylline":%s,"simulated":%s},"saemix":%s}\n',
  entry(nlme_theoph, fixef, logLik), entry(nlme_simulated, fixef, logLik),
  if (have_saemix) sprintf('{"theophylline":%s,"simulated":%s}', entry(saemix_theoph, fixed_of, by_importance), entry(saemix_simulated, fixed_of, by_importance)) else "null"))
